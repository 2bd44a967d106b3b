"""The command `manifpt`: a subcommand for each job, whose module is imported when it is called."""

import ast
import difflib
import importlib
import importlib.util
import sys
from pathlib import Path

from manifpt import __version__

# Jobs in the order of their use; each is a function `main` of a module of manifpt.jobs.
STAGES = {
    "start here": ("quickstart", "plan"),
    "data": ("audit", "normalize"),
    "real images": ("pretrain_embedding", "build_manifold", "append"),
    "generated images": ("compute_artifacts", "verify", "train_attribution", "evaluate"),
    "trained attributors": ("extend", "fuse", "register"),
    "use": ("attribute", "view", "explain", "report", "export"),
    "compare and tune": ("sweep", "compare_spaces", "compare_open_set", "reproduce"),
    "benchmarks and speed": ("build_benchmark", "benchmark"),
}
ELSEWHERE = {"sweep": "manifpt.tuning.sweep"}
USAGE = """usage: manifpt JOB [OPTIONS]

Which generative model made an image: data manifolds, artifacts and fingerprints, on Ray.
"""
END = "manifpt JOB --help has the options of a job and examples; manifpt --version the version."


def module_of(job: str) -> str:
    """Return the name of the module of a job."""
    return ELSEWHERE.get(job, f"manifpt.jobs.{job}")


def purpose(job: str) -> str:
    """Return the first line of a job's docstring; nothing of the job is imported."""
    spec = importlib.util.find_spec(module_of(job))
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def overview() -> str:
    """Return the jobs by stage, a line each."""
    width = max(len(job) for jobs in STAGES.values() for job in jobs)
    lines = [USAGE]
    for stage, jobs in STAGES.items():
        lines += [f"{stage}:", *(f"  {job:<{width}}  {purpose(job)}" for job in jobs), ""]
    return "\n".join([*lines, END])


def main(argv: list[str] | None = None) -> int:
    """Run the job that the first argument names, with the others as its options."""
    given = sys.argv[1:] if argv is None else argv
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        return 0
    if given[0] == "--version":
        print(f"manifpt {__version__}")
        return 0
    job, names = given[0].replace("-", "_"), [name for jobs in STAGES.values() for name in jobs]
    if job not in names:
        near = difflib.get_close_matches(job, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "manifpt --help lists the jobs"
        print(f"manifpt: there is no job {given[0]}; {hint}", file=sys.stderr)
        return 2
    code: int = importlib.import_module(module_of(job)).main(given[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
