r"""Compare the accuracies of spaces, metrics and combinations, in one table.

    manifpt compare_spaces --output comparison --seeds 0 1 2 --sl-weights mobilenet_v2.pth \
        --sl-network mobilenet_v2

For each metric, one pass builds the manifolds of all spaces, and one pass computes their artifacts.
Then an attributor is trained on each space, and evaluated on unseen images. The first metric uses
all seeds, the others only the first seed. In the first metric further inputs are classified: the
embeddings themselves (such as `sl-features`; for rgb they are the image), which shows the gain of
the projection; the image, its high-pass residuals, its local statistics, and the part of it that a
denoiser removes; and combinations of these, by fusion. A finished training is not repeated.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from manifpt import storage
from manifpt.cli import job
from manifpt.cli.config import parse
from manifpt.cli.job_options import OutputsFolder
from manifpt.cli.space_options import NetworkOptions
from manifpt.evaluation.evaluation_format import EvaluationSummary
from manifpt.jobs.chain import (
    DENOISER,
    FEATURES,
    HIGHPASS,
    IMAGE,
    Chain,
    ChainConfig,
    claimed,
    row,
    table,
)

if TYPE_CHECKING:
    from manifpt.evaluation.paired import Difference

RESIDUAL = "residual"
# The image with the next seed shows the gain of one more network without another view.
AGAIN = "image@1"


class Config(NetworkOptions, ChainConfig):
    """Options of compare_spaces."""

    output: OutputsFolder
    spaces: tuple[str, ...] = Field(("rgb", "freq", "sl", "ssl"), description="embedding spaces")
    metrics: tuple[str, ...] = Field(
        ("euclidean", "cosine", "whitened"),
        description="metrics to compare, see build_manifold; combinations are compared in the "
        "first one",
    )
    combinations: tuple[str, ...] = Field(
        (
            f"image+{AGAIN}",
            "image+highpass",
            "image+residual",
            "image+rgb",
            "image+denoiser",
            "image+highpass+residual",
            f"image+highpass+{AGAIN}",
            "image+highpass+denoiser",
            f"image+highpass+residual+{AGAIN}",
            "image+highpass+residual+denoiser",
        ),
        description="combinations of heads to fuse, in the first metric; image@1 is a head on "
        "the image with the next seed, so that combinations with the same number of "
        "networks can be compared",
    )
    fusions: tuple[Literal["late", "early"], ...] = Field(
        ("late",),
        description="how the combinations are fused; each early fusion is trained separately",
    )
    ssl_weights: str | None = Field(
        None, description="see build_manifold; if not given, an encoder is trained on the reals"
    )


def options(config: Config, chain: Chain) -> tuple[str, ...]:
    """Return build_manifold's options of the learned spaces."""
    found: tuple[str, ...] = ()
    if "sl" in config.spaces:
        given = ("--sl-weights", config.sl_weights) if config.sl_weights else ()
        found += ("--sl-network", config.sl_network, *given)
    if "ssl" in config.spaces:
        encoder = ("--ssl-weights", config.ssl_weights) if config.ssl_weights else chain.encoder()
        found += encoder
    size = config.network_size
    return found + (("--network-size", str(size)) if size else ())


def run(config: Config) -> None:
    """Run all trainings; print the table as it grows, and write the metrics."""
    with claimed(config, config.output):
        _run(config)


def _run(config: Config) -> None:
    chain = Chain(config, config.output)
    built = options(config, chain)
    results: dict[str, list[EvaluationSummary]] = {}

    def add(name: str, seeds: list[EvaluationSummary]) -> None:
        results[name] = seeds
        print(row(name, seeds), flush=True)

    for metric in config.metrics:
        main = metric == config.metrics[0]
        plain = (IMAGE, RESIDUAL) if main else (IMAGE,)
        artifacts = chain.artifacts(config.spaces, *built, metric=metric, plain=plain)
        names = config.spaces
        if main:
            chain.features(artifacts)
            chain.denoised(artifacts)
            as_they_are = (space + FEATURES for space in config.spaces if space != "rgb")
            names = (IMAGE, HIGHPASS, RESIDUAL, DENOISER, *as_they_are, *config.spaces)
        for space in names:
            title = space if main else f"{space} {metric}"
            seeds = config.seeds if main else config.seeds[:1]
            where = title.replace(" ", "-")
            add(title, chain.attributors(space, artifacts, title=where, seeds=seeds))
        for name in config.combinations if main else ():
            for fusion in config.fusions:
                title = f"{name} {fusion}"
                where = title.replace(" ", "-")
                add(title, chain.attributors(name, artifacts, fusion, title=where))
    # A metric beside the first has one seed and its interval.
    print(f"\n{table(results, {})}")
    gains = differences(config, chain)
    if gains:
        print("\naccuracy of one row less that of another, same test images (95 % interval)")
        for name, gain in gains.items():
            print(f"{name:<75} {gain}")
    found = {
        "settings": config.model_dump(mode="json"),
        "metrics": results,
        "differences": {name: gain._asdict() for name, gain in gains.items()},
    }
    storage.write_json(storage.join(config.output, "comparison.json"), found)
    if config.json_file:
        storage.write_json(config.json_file, found)


def equal_count_pairs(combinations: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return pairs of combinations of equal size: with another head, with the image again.

    >>> equal_count_pairs(("image+image@1", "image+highpass", "image+rgb+image@1"))
    [('image+highpass', 'image+image@1')]
    """
    pairs = []
    for name in combinations:
        heads = name.split("+")
        rest, last = heads[:-1], heads[-1]
        control = "+".join([*rest, AGAIN])
        # The statistics are not a network.
        if last not in (AGAIN, RESIDUAL) and control in combinations:
            pairs.append((name, control))
    return pairs


def differences(config: Config, chain: Chain) -> dict[str, "Difference"]:
    """Return the paired gains at equal numbers of networks, by ``NAME instead of NAME``."""
    from manifpt.evaluation import paired

    if "late" not in config.fusions:
        return {}
    found = {}
    for pair in equal_count_pairs(config.combinations):
        ours, theirs = (
            paired.hits([chain.evaluation(f"{name}-late", seed) for seed in config.seeds])
            for name in pair
        )
        found[" instead of ".join(pair)] = paired.difference(ours, theirs)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the comparison as a command."""
    return job.exit_code("compare_spaces", lambda: run(parse(Config, __doc__, argv)))
