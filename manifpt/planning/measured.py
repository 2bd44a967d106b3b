"""Measured times and sizes of the parts of jobs, from which plans are computed.

All times are seconds; those of images and reals are for one, on one core (or on the GPU, for steps
that run there).
"""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, ValidationError

from manifpt import storage
from manifpt.errors import ManifptError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sizes(_Part):
    """Bytes of an image as it is stored and of its attribution; of a real in memory and stored.

    ``unit`` is the number of images of a file of the input, ``chunk`` that of a part of the output.
    """

    image: PositiveFloat
    attribution: PositiveFloat
    real: PositiveFloat
    real_stored: PositiveFloat
    unit: float = Field(ge=1)
    chunk: int = Field(ge=1)


class ImageSeconds(_Part):
    """Seconds for one image: reader ``fetch``, ``decode``, ``table``; actor the rest.

    ``search`` is among ``reals`` reals; the part ``search_floor`` does not depend on their number.
    ``threads`` is the share of an actor's time that more threads divide.
    """

    fetch: NonNegativeFloat
    decode: NonNegativeFloat
    table: NonNegativeFloat
    embed: NonNegativeFloat
    search: NonNegativeFloat
    search_floor: NonNegativeFloat
    reals: int = Field(ge=1)
    classify: NonNegativeFloat
    write: NonNegativeFloat
    threads: float = Field(ge=0, le=1)


class Fixed(_Part):
    """Seconds of a job that do not depend on its size.

    ``start`` is the time until its processes start, ``actor`` and ``reader`` the processor time
    until one of them works; ``end`` is the time after the last chunk, ``build_end`` the same for a
    manifold. ``contention`` is the factor by which images take longer in a job, beside all its
    processes.
    """

    start: float
    actor: NonNegativeFloat
    reader: NonNegativeFloat
    end: NonNegativeFloat
    build_end: NonNegativeFloat
    contention: PositiveFloat


class Serial(_Part):
    """Seconds of serial work between and after the stages.

    ``chunk`` is the driver's time for a chunk, and ``check`` for the content of a part. ``ids`` is
    the time of tasks to compare an image's id with all others, ``copies`` to find its copies.
    """

    chunk: NonNegativeFloat
    ids: NonNegativeFloat
    check: NonNegativeFloat
    copies: NonNegativeFloat


class RealSeconds(_Part):
    """Seconds for one real when a manifold is built.

    ``calibrate`` is of up to ``sample`` reals, ``gather`` of all, and ``held_out`` the time in
    which the held-out reals meet one.
    """

    gather: NonNegativeFloat
    calibrate: NonNegativeFloat
    sample: int = Field(ge=1)
    held_out: NonNegativeFloat


class Measurements(_Part):
    """All measurements, and the machine: its cores, and the bytes that Ray has for jobs."""

    machine: dict[str, object]
    cores: int = Field(ge=1)
    memory: int = Field(ge=1)
    uses_gpu: bool
    exact: bool
    sizes: Sizes
    images: ImageSeconds
    fixed: Fixed
    serial: Serial
    reals: RealSeconds

    def write(self, uri: str) -> None:
        """Write it as JSON."""
        storage.write_json(uri, self.model_dump(mode="json"))

    @classmethod
    def read(cls, uri: str) -> "Measurements":
        """Read a file of ``write``."""
        try:
            return cls.model_validate(storage.read_json(uri))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise ManifptError(
                f"--measurements {uri}: {where}: {first['msg']}; make it by --measure"
            ) from None
