"""Claims: one run at a time works in an output, and nobody else's files are touched.

A run claims a folder by making ``_plan.json``, which only one of several processes can, and leaves
a sign of life in ``_alive.json`` every few seconds. A plan that a dead run has left is taken over
by the next; a run whose plan was taken finds another's token there, and stops.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from manifpt import __version__, layouts, liveness, records, storage
from manifpt.errors import DamageError, ManifptError
from manifpt.layouts import ALIVE, MANIFEST, PLAN
from manifpt.verified import entries, wrong

ATTEMPTS = 20
Facts = dict[str, Any]


class TakenError(ManifptError):
    """Another run has taken the output over."""


@dataclass(frozen=True)
class Terms:
    """What a run may replace: an output of other settings; a run that seems to be alive."""

    overwrite: bool = False
    take_over: bool = False


AS_IS = Terms()


@dataclass
class Claim:
    """A folder that this run works in, or whose output is ``finished``: then that is a manifest."""

    folder: str
    kind: str
    key: str
    finished: Facts | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    heart: liveness.Heart | None = None

    @property
    def uri(self) -> str:
        """Where the plan lies."""
        return storage.join(self.folder, PLAN)

    def write(self, version: str | None, clearing: str | None = None) -> bool:
        """Write the plan over that of a version, or where there is none; tell whether it was.

        ``clearing`` is the kind of an output whose files must go before work begins.
        """
        plan = {"kind": self.kind, "key": self.key, "token": self.token, **liveness.this_process()}
        data = storage.json_bytes(plan | ({"clearing": clearing} if clearing else {}))
        if version is not None:
            return storage.replace(self.uri, data, version)
        return storage.create(self.uri, data)

    def begin(self) -> None:
        """Let other runs and this one's processes know that it is at work."""
        _held[self.folder] = self.token
        self.heart = liveness.Heart(storage.join(self.folder, ALIVE), self.token)

    def publish(self, body: Facts, folder: str = "", kind: str = "") -> Facts:
        """Write the manifest that makes the files of a folder an output; return it.

        Each file that ``body`` lists is read once more, and must have its hash. ``folder`` and
        ``kind`` are of an output inside, which has a manifest of its own.
        """
        place = storage.join(self.folder, folder) if folder else self.folder
        damaged = wrong(place, entries(body))
        if damaged:
            records.forget(self.folder, [storage.join(folder, path) for path in damaged])
            raise DamageError(
                f"{storage.join(place, damaged[0])}: is not what this run wrote, as if another had "
                "written there; the same command makes it again"
            )
        check(self.folder, self.token)
        written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made_by = {"kind": kind or self.kind, "key": self.key, "manifpt": __version__}
        manifest = made_by | {"written": written} | body
        storage.write_json(storage.join(place, MANIFEST), manifest)
        if not folder:
            self.finished = manifest
        return manifest

    def abandon(self) -> None:
        """Give the folder back as it was before: all goes that jobs wrote there."""
        check(self.folder, self.token)
        self._rest()
        layouts.clear(self.folder, self.kind)
        layouts.forget(self.folder)

    def end(self) -> None:
        """Leave the folder: an unfinished output in such a state that the next run goes on."""
        if self.heart is None:
            return
        self._rest()
        with suppress(ManifptError):  # a run that can't say so will be found dead
            data, version = storage.read_versioned(self.uri)
            if json.loads(data).get("token") != self.token:
                return
            if self.finished is not None:
                layouts.clear_halves(self.folder, self.kind)
                layouts.forget(self.folder)
            else:
                free = {"kind": self.kind, "key": self.key}
                storage.replace(self.uri, storage.json_bytes(free), version)

    def _rest(self) -> None:
        _held.pop(self.folder, None)
        if self.heart is not None:
            self.heart.stop()
            self.heart = None


# The tokens of this process's claims, by folder.
_held: dict[str, str] = {}


def token_of(folder: str) -> str:
    """Return the token of this process's claim on a folder; "" without one."""
    return _held.get(folder, "")


def check(folder: str, token: str) -> None:
    """Raise if a folder's plan is no longer that of a token, in any process of its run."""
    found = layouts.read(folder, PLAN) if token else None
    if token and (found is None or found.get("token") != token):
        other = f" ({liveness.described(found)})" if found and "token" in found else ""
        raise TakenError(f"--output {folder}: another run{other} has taken it over; this one stops")


@contextmanager
def claim(
    folder: str,
    kind: str,
    key: str,
    *,
    apart: Sequence[tuple[str, str]] = (),
    terms: Terms = AS_IS,
    keep: Collection[str] = (),
    published: Callable[[], str] | None = None,
    again: bool = False,
) -> Iterator[Claim]:
    """Claim a folder for an output in the block, unless that same output is finished there.

    ``key`` is a hash of all that decides the content. Where a long listing decides it, too, ``key``
    is of the rest, and ``published``, called if there is a manifest, of both. A folder of another
    key or kind is an error, unless ``terms`` let it be overwritten; of the outputs inside it those
    in ``keep`` stay. ``apart`` are options and URIs that the folder may neither hold nor lie in.
    With ``again``, a finished output is worked on once more.
    """
    check_apart(folder, apart)
    held = Claim(folder, kind, key)

    def finished(manifest: Facts | None) -> bool:
        if manifest is None or manifest["kind"] != kind:
            return False
        return bool(manifest["key"] == (published() if published else key))

    for _ in range(ATTEMPTS):
        manifest = layouts.read(folder, MANIFEST)
        if not again and finished(manifest):
            held.finished = manifest
            yield held
            return
        if _take(held, manifest, terms, keep, again=again):
            break
    else:
        raise ManifptError(f"--output {folder}: other runs keep claiming it; try again later")
    try:
        yield held
    finally:
        held.end()


def _take(
    held: Claim, manifest: Facts | None, terms: Terms, keep: Collection[str], *, again: bool
) -> bool:
    """Make the plan of a folder this run's; tell whether it is, or all must be looked at again."""
    plan, version = _plan(held.folder)
    same = plan is not None and (plan["kind"], plan["key"]) == (held.kind, held.key)
    other = (None if again else manifest) or (None if same else plan)
    if other is not None and not terms.overwrite:
        remedy = "choose another --output or add --overwrite"
        raise ManifptError(
            f"--output {held.folder}: holds {other['kind']} made with other settings; {remedy}"
        )
    if plan is None and manifest is None:
        check_free(held.folder, held.kind)
    if plan is not None and not terms.take_over and not _free(held.folder, plan):
        return False
    clearing = other["kind"] if other else (plan or {}).get("clearing")
    if not held.write(version, clearing):
        return False
    held.begin()
    if clearing is None and layouts.read(held.folder, MANIFEST) != manifest:
        held.end()  # another run has finished in between
        return False
    if clearing is not None:
        layouts.clear(held.folder, clearing, keep)
        check(held.folder, held.token)
        return held.write(storage.read_versioned(held.uri)[1])
    return True


def _plan(folder: str) -> tuple[Facts | None, str | None]:
    """Return a folder's plan, and the version that may be replaced; a stranger's is an error."""
    uri = storage.join(folder, PLAN)
    if not storage.exists(uri):
        return None, None
    try:
        data, version = storage.read_versioned(uri)
    except ManifptError:
        if storage.exists(uri):
            raise
        return None, None  # its run has ended between the two questions
    found = layouts.parsed(data)
    if found is None:
        raise ManifptError(f"{uri}: is no plan of a job's; choose another --output")
    return found, version


def _free(folder: str, plan: Facts) -> bool:
    """Tell whether a plan may be taken now; raise if its run is at work."""
    token = plan.get("token")
    if token is None:
        return True
    alive = storage.join(folder, ALIVE)
    if liveness.silent(plan, alive):
        return True
    now = layouts.read(folder, PLAN)
    if now is None or now.get("token") != token:
        return False  # it has ended in the meantime
    age = storage.age(alive)
    ago = "" if age is None else f", last sign of life {age:.0f} s ago"
    raise ManifptError(
        f"--output {folder}: another run works there ({liveness.described(plan)}{ago}); wait for "
        "it, or add --take-over if it is dead"
    )


def check_place(folder: str, kind: str, apart: Sequence[tuple[str, str]]) -> None:
    """Raise if a job must not write to a folder; ``claim`` asks the same, maybe hours later."""
    check_apart(folder, apart)
    check_free(folder, kind)


def check_free(folder: str, kind: str) -> None:
    """Raise if a folder holds anything, and carries neither plan nor manifest of a job."""
    if layouts.kind_of(folder) is not None:
        return
    name = layouts.stranger(folder, kind)
    if name is not None and layouts.kind_of(folder) is None:  # a run may have begun just now
        raise ManifptError(
            f"--output {folder}: holds {name}, which no job has written; choose a new or an empty "
            "folder"
        )


def check_apart(folder: str, apart: Sequence[tuple[str, str]]) -> None:
    """Raise if a folder lies in a place that a job reads, holds it, or is it."""
    here = _resolved(folder)
    for option, uri in apart:
        there = _resolved(uri)
        if f"{here}/".startswith(f"{there}/") or f"{there}/".startswith(f"{here}/"):
            raise ManifptError(
                f"--output {folder}: is, holds or lies in {option} {uri}; choose a folder beside it"
            )


def _resolved(uri: str) -> str:
    """Return a URI without links; the root of a disk is empty."""
    if storage.is_s3(uri):
        return storage.absolute(uri)
    return os.path.realpath(storage.absolute(uri)).rstrip("/")
