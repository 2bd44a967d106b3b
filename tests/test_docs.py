"""The pages say what is there: links lead somewhere, options exist, generated parts are current."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from manifpt.__main__ import STAGES, module_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
JOBS = "|".join(job for jobs in STAGES.values() for job in jobs)
START = rf"(?:-m jobs\.|-m tuning\.|^ *manifpt )({JOBS})\b"
COMMAND = re.compile(START + r"((?:[^\n;|&`#]|\\\n)*)", re.MULTILINE)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", text.lower()).strip() for text in headings)
    return {re.sub(r" +", "-", text) for text in plain}


def flags_of(job: str) -> set[str]:
    """All flags of a job, and those of attribute's other command."""
    module = importlib.import_module(module_of(job))
    kinds = [module.Config, *([module.Status] if hasattr(module, "Status") else [])]
    fields = {f.alias or name for kind in kinds for name, f in kind.model_fields.items()}
    flags = {"--" + name.replace("_", "-") for name in fields}
    return flags | {flag.replace("--", "--no-", 1) for flag in flags} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if (ROOT / "docs") in page.parents:  # MkDocs knows of no other files
            assert (ROOT / "docs") in target.parents, f"{link}: leads out of docs/"
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_in_commands_exist(page):
    for job, rest in COMMAND.findall(page.read_text()):
        unknown = set(re.findall(r"(?<=\s)--[a-z][\w-]*", rest)) - flags_of(job)
        assert not unknown, f"{job}: {unknown}"


def test_the_reference_is_current():
    path = ROOT / "docs" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.text(), "run: make reference"


def test_the_architecture_has_a_line_for_each_module():
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = set()
    for part in page.split("\n### ")[1:]:
        folder, _, text = part.partition("\n")
        names = re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)
        listed |= {f"{folder}/{name}" for name in names}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "manifpt").rglob("*.py")
        if not path.name.startswith("__")
    }
    assert sorted(there - listed) == [], "add a line to docs/architecture.md"
    assert sorted(listed - there) == [], "remove the line from docs/architecture.md"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_figures_of_the_readme_are_those_of_the_results():
    rows = re.findall(r"^\|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    figures = set(re.findall(r"\d+\.\d+", "\n".join(rows)))
    results = "".join(page.read_text() for page in PAGES if page.parent.name == "results")
    assert figures - set(re.findall(r"\d+\.\d+", results)) == set()


def test_the_navigation_names_pages_that_exist():
    def files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry if isinstance(entry, list) else entry.values()
        return [file for value in values for file in files(value)]

    for name in files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]):
        assert (ROOT / "docs" / name).is_file(), name
