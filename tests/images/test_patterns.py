"""Braces against an own expansion and a real shell; wildcards against Python's glob."""

import glob
import itertools
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifpt.errors import ManifptError
from manifpt.images import plan
from manifpt.images.patterns import braces, matches

word = st.text("ab.", max_size=2)


def choice(parts):
    """The text of a choice in braces, and what it stands for."""
    return "{" + ",".join(t for t, _ in parts) + "}", [w for _, words in parts for w in words]


def sequence(parts):
    """The text of parts in a row, and what they stand for."""
    texts, words = zip(*parts, strict=True)
    return "".join(texts), ["".join(each) for each in itertools.product(*words)]


@st.composite
def number_range(draw):
    first, last, width = draw(st.integers(0, 12)), draw(st.integers(0, 12)), draw(st.integers(2, 4))
    step = 1 if first <= last else -1
    return f"{{{first:0{width}d}..{last:0{width}d}}}", [
        f"{n:0{width}d}" for n in range(first, last + step, step)
    ]


patterns = st.recursive(
    st.one_of(word.map(lambda text: (text, [text])), number_range()),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(choice),
        st.lists(inner, min_size=1, max_size=3).map(sequence),
    ),
    max_leaves=6,
)


@given(patterns)
def test_braces_are_products_of_choices(pattern):
    text, expected = pattern
    assert list(braces(text)) == expected


@pytest.mark.parametrize(
    "text",
    ["{00000..00012}.tar", "a{b,c{d,e}}f", "{3..-3..2}", "{09..11}x{a,}", "{a}", "a{b", "x}{y,z}",
     "{-05..2}", "{a..2}{b,c}", "{{1..3}}", "{1,{2..4},}z"],
)  # fmt: skip
def test_braces_are_those_of_a_shell(text):
    command = ["bash", "-c", f"printf '[%s]' {text}"]
    shell = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "".join(f"[{one}]" for one in braces(text)) == shell


def test_braces_are_not_all_held_at_once():
    first = list(itertools.islice(braces("{a,b}{0..9999999999}"), 2))
    assert first == ["a0", "a1"]
    with pytest.raises(ManifptError, match="more than"):
        plan(["/nowhere/{0..999999}.png"])


@pytest.fixture
def tree(tmp_path):
    for name in (
        "a/x.png",
        "a/y.jpg",
        "a/b/z.png",
        "c/x.png",
        "top.png",
        "_work/x.png",
        "10.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    return tmp_path


@pytest.mark.parametrize(
    "pattern", ["*.png", "a/*", "**/*.png", "[a-c]/x.png", "?/x.*", "a/**", "[!a]/*.png", "**/b/*"]
)
def test_wildcards_are_those_of_glob(tree, pattern):
    found = glob.glob(str(tree / pattern), recursive=True)
    inside = {os.path.join(top, f) for d in found for top, _, fs in os.walk(d) for f in fs}
    expected = sorted({f for f in found if os.path.isfile(f)} | inside)
    expected = [f for f in expected if "/_" not in f]
    units = plan([f"{tree}/{pattern}"])
    assert [uri for unit in units for uri in unit.uris] == expected
    root = tree / "a" if pattern.startswith("a/") else tree
    ids = [name for unit in units for name in unit.ids]
    assert ids == [os.path.relpath(uri, root) for uri in expected]


def test_what_several_choices_name_comes_once_in_the_order_of_the_first(tree):
    units = plan([f"{tree}/{{a/b,a,**/x.png,c/x.png,top.png}}"])
    ids = [name for unit in units for name in unit.ids]
    assert ids == ["a/b/z.png", "a/x.png", "a/y.jpg", "c/x.png", "top.png"]


@pytest.mark.parametrize("pattern", ["{top,gone}.png", "*.gif", "{a,no}/*.png"])
def test_a_choice_that_names_nothing_is_an_error(tree, pattern):
    with pytest.raises(ManifptError, match="names no file"):
        plan([f"{tree}/{pattern}"])


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path):
    (tmp_path / "x[1]{a,b}").mkdir()
    (tmp_path / "x[1]{a,b}" / "1.png").write_bytes(b"1")
    assert [u.ids for u in plan([f"{tmp_path}/x[1]{{a,b}}"])] == [("1.png",)]


def test_two_stars_match_any_depth():
    assert matches(["a", "b", "c"], ["**", "c"])
    assert matches(["c"], ["**", "c"])
    assert not matches(["a", "cc"], ["**", "c"])
