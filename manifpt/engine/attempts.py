"""A limit on the attempts of a task that kills its process, which Ray would repeat forever.

Only a task that is tried again leaves a mark under the output, which goes when the task is done: a
mark that stays is a death. Processes that are killed from outside now and then stay far below the
limit.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from manifpt import storage
from manifpt.errors import ManifptError

FOLDER = "_attempts"
DEATHS = 4
_MARK = r"[0-9a-f]{32}"


@contextmanager
def limited(output: str, name: str, about: Callable[[], str]) -> Iterator[None]:
    """Run the block unless ``DEATHS`` processes in a row have died in it.

    ``name`` is that of the piece of work, ``about`` describes it in an error.
    """
    if not _again():
        yield
        return
    folder = storage.join(output, FOLDER, name)
    marks = storage.files_under(folder) if storage.exists(folder) else []
    # The first death left no mark.
    if len(marks) >= DEATHS - 1:
        raise ManifptError(
            f"{about()}: the process that works on it died {DEATHS} times; give it more memory "
            "(fewer --num-actors), or leave that input out"
        )
    mark = storage.join(folder, uuid.uuid4().hex)
    storage.write_bytes(mark, b"")
    yield
    storage.remove_files(folder, _MARK)


def _again() -> bool:
    """Tell whether this process's work may have been begun before, and not ended."""
    import ray

    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    if context.get_actor_id():
        return _restarted(context.get_actor_id())
    from ray._private.worker import global_worker  # there is no public call that returns it

    return bool(global_worker.core_worker.get_current_task_attempt_number())


@cache  # a process is one life of an actor, and Ray's head knows which
def _restarted(actor_id: str) -> bool:
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def clear(output: str) -> None:
    """Remove all marks: those of an earlier start may be of a job that was stopped."""
    storage.remove_files(storage.join(output, FOLDER), rf"[\w-]+/{_MARK}")
