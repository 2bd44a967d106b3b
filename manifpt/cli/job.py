"""The edge of every job: options in, one MLflow run, a summary out, errors as one line."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from manifpt.cli.config import Config, parse
from manifpt.cli.job_options import DryRunOptions
from manifpt.errors import ManifptError

Job = Callable[[Config, Any], Mapping[str, object]]


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _stoppable() -> None:
    """Let SIGTERM and SIGHUP stop this process as Ctrl-C does; nohup's stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminate)


def _start_ray() -> None:
    from manifpt.engine import session

    try:
        session.start()
    except SystemExit:  # a SIGTERM that met the handler which Ray installs
        raise KeyboardInterrupt from None
    finally:
        _stoppable()


def execute(
    name: str,
    kind: type[Config],
    job: Job[Config],
    argv: Sequence[str] | None,
    doc: str,
    *,
    on_ray: bool = True,
) -> Mapping[str, Any]:
    """Parse, start Ray, run the job inside its MLflow run; return its summary or raise.

    A job that is not ``on_ray`` needs no cluster and starts none. A dry run has no MLflow run.
    """
    config = parse(kind, doc, argv)
    _stoppable()
    from manifpt import tracking
    from manifpt.engine import pools, session
    from manifpt.engine.bill import Bill

    bill = Bill(config.prices, config.max_cost, getattr(config, "output", None))
    if isinstance(config, DryRunOptions) and config.dry_run:
        from manifpt.planning.dry import dry_run

        pools.allow(config.limits)
        _start_ray()
        return dry_run(name, config)
    params = config.model_dump(mode="json", exclude_none=True)
    # Raised outside the block of the run, which ends like one that was stopped.
    with bill.running(), tracking.run(name, params) as run:
        if on_ray:
            pools.allow(config.limits)
            _start_ray()
            run.tags(session.identity())
        summary = job(config, run)
        run.metrics({**summary, "cost": bill.spent} if config.prices else summary)
        run.document("summary.json", summary)
    bill.forget()
    if config.json_file:
        from manifpt import storage

        storage.write_json(config.json_file, summary)
    return summary


def main(
    name: str,
    kind: type[Config],
    job: Job[Config],
    doc: str,
    argv: Sequence[str] | None = None,
    *,
    on_ray: bool = True,
) -> int:
    """Run a job as a command: print its answer, and its summary as JSON; return the exit code.

    The answer is for people and goes to stderr. The JSON goes to stdout, if that is no terminal.
    """

    def command() -> None:
        summary = execute(name, kind, job, argv, doc, on_ray=on_ray)
        from manifpt.cli.answer import answer, show  # not needed for --help

        print(file=sys.stderr)
        show(answer(name, summary), sys.stderr)
        if not sys.stdout.isatty():
            _print_json(summary)

    return exit_code(name, command)


def _print_json(summary: Mapping[str, Any]) -> None:
    try:
        print(json.dumps(summary, indent=1), flush=True)
    except BrokenPipeError:  # `| head` has read enough; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(name: str, command: Callable[[], None]) -> int:
    """Run a command; return 0, 130 if it was stopped, 2 with one line for an error of the user.

    The code is 1 for a verification that finds a difference, 3 for an audit that fails.
    """
    try:
        _stoppable()
        command()
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        from manifpt.engine import session
        from manifpt.storage import failures

        reason = session.cause(error)
        if not isinstance(reason, ManifptError):
            reason = failures.out_of_memory(reason) or failures.out_of_memory(error) or reason
        if not isinstance(reason, ManifptError):
            raise
        print(f"{name}: {reason}", file=sys.stderr)
        return reason.exit_code
    return 0
