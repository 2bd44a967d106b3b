"""Claims: only one run at a time works in an output, and no job changes files of the user.

A run claims a folder by creating ``_plan.json``, which only one of several processes can do. It
updates ``_alive.json``, its sign of life, every few seconds. The next run takes over the plan of a
run that is dead. A run that finds another token in the plan has lost its claim, and stops.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from manifpt import __version__, storage
from manifpt.errors import DamageError, ManifptError
from manifpt.outputs import layouts, liveness, manifests, records
from manifpt.outputs.formats import Document, Manifest, Plan
from manifpt.outputs.layouts import ALIVE, MANIFEST, PLAN
from manifpt.outputs.provenance import git_commit, versions
from manifpt.outputs.verified import entries, wrong

ATTEMPTS = 20


class TakenError(ManifptError):
    """Another run has taken the output over."""


@dataclass(frozen=True)
class Terms:
    """Options that let a run replace an output of other settings, or a run that may be alive."""

    overwrite: bool = False
    take_over: bool = False


AS_IS = Terms()


@dataclass
class Claim:
    """A folder that this run works in; if its output is complete, ``finished`` is the manifest."""

    folder: str
    kind: str
    key: str
    finished: Any = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    heart: liveness.Heart | None = None

    @property
    def uri(self) -> str:
        """The URI of the plan."""
        return storage.join(self.folder, PLAN)

    def write(self, version: str | None, clearing: str | None = None) -> bool:
        """Replace the plan of this ``version``, or create it if that is None; return success.

        ``clearing`` are the kinds, joined by ``+``, of old outputs whose files must be removed
        before work begins.
        """
        mark = liveness.this_process()
        plan = Plan(kind=self.kind, key=self.key, token=self.token, **mark)
        if clearing:
            plan["clearing"] = clearing
        data = storage.json_bytes(plan)
        if version is not None:
            done = storage.replace(self.uri, data, version)
        else:
            done = storage.create(self.uri, data)
        # A storage whose answer was lost was asked again, and met this very plan.
        return done or (storage.exists(self.uri) and storage.read_bytes(self.uri) == data)

    def check(self) -> None:
        """Raise if another run has taken the folder over."""
        check(self.folder, self.token)

    def check_after_error(self) -> None:
        """Raise TakenError if another run has taken the folder over, which may explain the error.

        The other run may have removed a file that this one was about to read.
        """
        if self.heart is None:
            return
        try:
            self.check()
        except TakenError:
            raise
        except ManifptError:  # the storage fails; the first error stays
            return

    def begin(self) -> None:
        """Start the signs of life, and make the token known to this process."""
        _held[self.folder] = self.token
        self.heart = liveness.Heart(storage.join(self.folder, ALIVE), self.token)

    def publish(self, body: Document, folder: str = "", kind: str = "") -> Document:
        """Write the manifest, which makes the files of a folder an output, and return it.

        Each file that ``body`` lists is read once more, and must have the hash listed for it.
        ``folder`` and ``kind`` name an output inside this one that has its own manifest.
        """
        place = storage.join(self.folder, folder) if folder else self.folder
        damaged = wrong(place, entries(body))
        if damaged:
            records.forget_chunks(self.folder, [storage.join(folder, path) for path in damaged])
            raise DamageError(
                f"{storage.join(place, damaged[0])}: differs from the file that this run wrote; "
                "another process may have written there; the same command makes it again"
            )
        check(self.folder, self.token)
        written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made_by = {"manifpt": __version__, "commit": git_commit(), "versions": versions()}
        mine = {"kind": kind or self.kind, "written": written, **made_by}
        # A body may have a key of its own, such as that of the inputs as they were read.
        manifest: Any = {"key": self.key} | manifests.sharded(place, body) | mine
        storage.write_json(storage.join(place, MANIFEST), manifest)
        check(self.folder, self.token)  # a run that takes over looks for a manifest after that
        manifests.clear_lists(place, manifest)
        if not folder:
            self.finished = manifest
        return manifest

    def abandon(self) -> None:
        """Remove all files that jobs wrote in the folder, which leaves it as it was before."""
        self.check()
        self._rest()
        layouts.clear(self.folder, self.kind)
        layouts.forget(self.folder)

    @contextmanager
    def abandoned_if_refused(self) -> Iterator[None]:
        """Abandon the output if the block raises an error of input, which a retry can't mend."""
        try:
            yield
        except ManifptError:
            self.abandon()
            raise

    def end(self, clearing: str | None = None) -> None:
        """End the claim; the next run can continue an unfinished output.

        ``clearing`` is as in ``write``, where the removal was not completed.
        """
        if self.heart is None:
            return
        self._rest()
        with suppress(ManifptError):  # a run that can't write it counts as dead later
            data, version = storage.read_versioned(self.uri)
            if json.loads(data).get("token") != self.token:
                return
            if self.finished is not None:
                layouts.clear_halves(self.folder, self.kind)
                layouts.forget(self.folder)
            else:
                free = Plan(kind=self.kind, key=self.key)
                if clearing:
                    free["clearing"] = clearing
                storage.replace(self.uri, storage.json_bytes(free), version)

    def _rest(self) -> None:
        _held.pop(self.folder, None)
        if self.heart is not None:
            self.heart.stop()
            self.heart = None


# The tokens of this process's claims, by folder.
_held: dict[str, str] = {}


def token_of(folder: str) -> str:
    """Return the token of this process's claim on a folder, or "" if it has none."""
    return _held.get(folder, "")


def works_under(folder: str) -> bool:
    """Tell whether this process has a claim on a folder, or on one inside it."""
    return any(f"{held}/".startswith(f"{folder}/") for held in _held)


def check(folder: str, token: str) -> None:
    """Raise TakenError if a folder's plan has another token; any process of the run may ask."""
    found: Plan | None = layouts.read(folder, PLAN) if token else None
    if token and (found is None or found.get("token") != token):
        other = f" ({liveness.run_text(found)})" if found and "token" in found else ""
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
    """Claim a folder for an output during the block, unless this output is finished there.

    ``key`` is a hash of everything that determines the content. If a long listing belongs to that,
    ``key`` leaves the listing out, and ``published`` returns a hash that includes it; it is called
    only if there is a manifest. An output of another key or kind is an error, unless ``terms``
    allow to overwrite it; then the outputs inside it that ``keep`` names stay. ``apart`` lists
    options and their URIs; the folder must not be, contain or lie in one of these URIs. With
    ``again``, the run works on a finished output once more.
    """
    check_apart(folder, apart)
    held = Claim(folder, kind, key)

    def finished(manifest: Manifest | None) -> bool:
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
    except TakenError:
        raise
    except Exception:
        held.check_after_error()
        raise
    finally:
        held.end()


def _take(
    held: Claim, manifest: Manifest | None, terms: Terms, keep: Collection[str], *, again: bool
) -> bool:
    """Try to make the plan of a folder this run's; False means that the caller must try again."""
    plan, version = _plan(held.folder)
    same = plan is not None and (plan["kind"], plan["key"]) == (held.kind, held.key)
    other = (None if again else manifest) or (None if same else plan)
    if other is not None and not terms.overwrite:
        raise _other(held.folder, other)
    if plan is None and manifest is None:
        check_folder_is_free(held.folder, held.kind)
    if plan is not None and not terms.take_over and not _free(held.folder, plan):
        return False
    kinds = {str(other["kind"])} if other else set()
    kinds |= set((plan.get("clearing", "") if plan else "").split("+")) & layouts.KINDS
    clearing = "+".join(sorted(kinds)) or None
    if not held.write(version, clearing):
        return False
    held.begin()
    try:
        if clearing is None and layouts.read(held.folder, MANIFEST) != manifest:
            held.end()  # another run has finished in the meantime
            return False
        for kind in sorted(kinds):
            layouts.clear(held.folder, kind, keep)
        if clearing is None:
            return True
        held.check()
        return held.write(storage.read_versioned(held.uri)[1])
    except BaseException:
        held.end(clearing)
        raise


def _other(folder: str, found: Manifest | Plan) -> ManifptError:
    remedy = "choose another --output or add --overwrite"
    return ManifptError(
        f"--output {folder}: holds {found['kind']} made with other settings; {remedy}"
    )


def _plan(folder: str) -> tuple[Plan | None, str | None]:
    """Return a folder's plan and its version; raise if no job wrote that file."""
    uri = storage.join(folder, PLAN)
    if not storage.exists(uri):
        return None, None
    try:
        data, version = storage.read_versioned(uri)
    except ManifptError:
        if storage.exists(uri):
            raise
        return None, None  # its run ended between these two calls
    found = layouts.parsed(data)
    if found is None:
        raise ManifptError(f"{uri}: not a plan that a job wrote; choose another --output")
    return found, version


def _free(folder: str, plan: Plan) -> bool:
    """Tell whether a plan may be taken over now; raise if its run is alive."""
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
        f"--output {folder}: another run works there ({liveness.run_text(plan)}{ago}); wait for "
        "it, or add --take-over if it is dead"
    )


def check_place(
    folder: str, kind: str, apart: Sequence[tuple[str, str]], terms: Terms = AS_IS
) -> None:
    """Raise if a job must not write to a folder; ``claim`` checks that again, maybe hours later."""
    check_apart(folder, apart)
    check_folder_is_free(folder, kind)
    manifest, (plan, _) = layouts.read(folder, MANIFEST), _plan(folder)
    if manifest is not None and manifest["kind"] != kind and not terms.overwrite:
        raise _other(folder, manifest)
    if plan is not None and not terms.take_over:
        _free(folder, plan)


def check_folder_is_free(folder: str, kind: str) -> None:
    """Raise if a folder holds files, but neither a plan nor a manifest of a job."""
    if layouts.output_kind(folder) is not None:
        return
    name = layouts.unexpected_file(folder, kind)
    if name is not None and layouts.output_kind(folder) is None:  # a run may have begun just now
        raise ManifptError(
            f"--output {folder}: holds {name}, which no job has written; choose a new or an empty "
            "folder"
        )


def check_apart(folder: str, apart: Sequence[tuple[str, str]]) -> None:
    """Raise if a folder is, contains or lies in a place that a job reads."""
    here = _resolved(folder)
    for option, uri in apart:
        there = _resolved(uri)
        if f"{here}/".startswith(f"{there}/") or f"{there}/".startswith(f"{here}/"):
            raise ManifptError(
                f"--output {folder}: is, holds or lies in {option} {uri}; choose a folder beside it"
            )


def _resolved(uri: str) -> str:
    """Return a URI with symbolic links resolved; the root of a disk becomes an empty text."""
    if storage.is_remote(uri):
        return storage.absolute(uri)
    return os.path.realpath(storage.absolute(uri)).rstrip("/")
