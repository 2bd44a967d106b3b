"""The command `manifpt`, in a checkout and from a wheel in an empty folder."""

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import manifpt.jobs
from manifpt import __version__
from manifpt.__main__ import STAGES, main, module_of
from manifpt.cli.shipped import shipped

ROOT = Path(__file__).parents[2]
JOBS = [job for jobs in STAGES.values() for job in jobs]


def test_every_job_is_listed_once_with_its_purpose(capsys):
    modules = [module.name for module in pkgutil.iter_modules(manifpt.jobs.__path__)]
    own = [name for name in modules if hasattr(importlib.import_module(module_of(name)), "main")]
    assert sorted(JOBS) == sorted([*own, "sweep"])
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for job in JOBS:
        doc = importlib.import_module(module_of(job)).__doc__.splitlines()[0]
        assert f"  {job}  " in printed
        assert f"  {doc}\n" in printed
    assert max(map(len, printed.splitlines())) <= 120


@pytest.mark.parametrize("job", JOBS)
def test_every_job_runs_by_its_module_in_a_checkout_too(job):
    folder = "tuning" if job == "sweep" else "jobs"
    module = importlib.import_module(f"{folder}.{job}")
    assert module.main is importlib.import_module(module_of(job)).main


def test_help_keeps_lines_and_puts_options_in_parts(capsys):
    with pytest.raises(SystemExit):
        main(["build-benchmark", "--help"])
    printed = capsys.readouterr().out
    assert (
        "    manifpt build_benchmark --name GM-FashionMNIST --licence MIT \\\n        --real"
        in printed
    )
    parts = ["inputs:", "this job:", "resources:", "all jobs:"]
    places = [printed.index(f"\n{part}\n") for part in parts]
    assert places == sorted(places)
    options = ["--real", "--recipes", "--num-cpus", "--config"]
    found = [printed.index(f"\n  {option} ") for option in options]
    order = [place for pair in zip(places, found, strict=True) for place in pair]
    assert order == sorted(order)


def test_the_version_and_a_name_that_is_none(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"manifpt {__version__}\n"
    assert main(["atribute", "--input", "x"]) == 2
    assert capsys.readouterr().err == "manifpt: there is no job atribute; did you mean attribute?\n"


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [("photos", "inputs follow --input; see"), ("--outputt=x", "did you mean --output? see")],
)
def test_an_argument_that_no_job_takes_has_a_remedy(capsys, argument, remedy):
    assert main(["audit" if argument == "photos" else "normalize", argument]) == 2
    assert capsys.readouterr().err.endswith(f"{argument}; {remedy} --help\n")


def test_what_is_shipped_is_found_where_there_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert shipped("tuning/quick.yaml") == "tuning/quick.yaml"
    monkeypatch.chdir(tmp_path)
    assert (
        Path(shipped("tuning/quick.yaml")).read_text() == (ROOT / "tuning/quick.yaml").read_text()
    )
    assert Path(shipped("benchmarks/gm-fashionmnist"), "card.json").exists()
    assert shipped("tuning/mine.yaml") == "tuning/mine.yaml"
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "quick.yaml").write_text("trials: 1")
    assert shipped("tuning/quick.yaml") == "tuning/quick.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_wheel_holds_manifpt_alone_and_runs_anywhere(tmp_path):
    source, target, empty = tmp_path / "source", tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    for name in ("manifpt", "jobs", "tuning", "benchmarks"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run(wheel, check=True, timeout=300)
    (built,) = tmp_path.glob("manifpt-*.whl")
    assert built.stat().st_size < 10e6
    install = [*pip, "install", str(built), "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run(install, check=True, timeout=300)
    packages = [p.name for p in target.iterdir() if p.name != "bin" and p.suffix != ".dist-info"]
    assert packages == ["manifpt"]

    # The dependencies are those of this environment; its own manifpt comes after the wheel's.
    environment = os.environ | {"PYTHONPATH": str(target)}
    command, common = str(target / "bin" / "manifpt"), {"cwd": empty, "env": environment}
    listed = subprocess.run([command, "--help"], **common, capture_output=True, timeout=60)
    assert b"quickstart" in listed.stdout
    where = [sys.executable, "-c", "import manifpt; print(manifpt.__file__)"]
    found = subprocess.run(where, **common, capture_output=True, text=True, timeout=60)
    assert Path(found.stdout.strip()).is_relative_to(target)
    small = ["--sources", "real", "gan", "--steps", "1", "--output", "out"]
    ran = subprocess.run(
        [command, "quickstart", *small], **common, check=True, timeout=1200, stdout=subprocess.PIPE
    )
    assert (empty / "out" / "attributions" / "manifest.json").exists()
    for folder, line in zip(
        ("evaluation/rgb", "attributions", "evaluation/all"),
        ran.stdout.splitlines()[-3:],
        strict=True,
    ):
        address = line.decode().partition(": ")[2]
        assert address == (empty / "out" / folder / "report.html").as_uri()
        assert (empty / "out" / folder / "report.html").stat().st_size < 10e6
