"""No two images of a job share an id, whatever files, members and cells are called."""

import itertools
import re
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifpt.images.ids import Keys, Names, broken_id, escaped, member_uri, row_id
from manifpt.images.units import _parsed

PIECES = ["a", "b", ".", "~", "%", "7E", "%7E", "%FF", "u", "%uD800", "\udcff", "\ud800", "\0"]
PIECES += ["~2", "~broken", "1", ".png", ".tar", ".tgz", ".csv", "é"]
names = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
texts = st.one_of(names, st.text(st.characters(blacklist_categories=[])))
paths = st.lists(names.filter(bool), min_size=1, max_size=3).map("/".join)


def unescaped(text: str) -> str:
    def plain(match):
        code = match[1]
        if code.startswith("u"):
            return chr(int(code[1:], 16))
        return chr(int(code, 16) + (0xDC00 if int(code, 16) >= 0x80 else 0))

    return re.sub("%([0-9A-F]{2}|u[0-9A-F]{4})", plain, text)


@given(texts)
def test_an_escaped_name_is_text_without_marks_and_says_the_name(name):
    found = escaped(name)
    assert "~" not in found
    assert found.encode().decode() == found
    assert unescaped(found) == name


@given(st.binary().filter(lambda name: b"\0" not in name))
def test_the_fragment_of_a_members_uri_decodes_to_its_name(name):
    member = name.decode("utf-8", "surrogateescape")
    _, _, fragment = member_uri("t.tar", member).partition("#")
    assert urllib.parse.unquote_to_bytes(fragment) == name


@pytest.mark.parametrize(
    "name", ["x.png", "Zoë/日本 1.jpg", "50%.png", "a#b?c&d", "./x", "_DSC1.JPG"]
)
def test_ordinary_names_stay_as_they_are(name):
    assert escaped(name) == name
    assert member_uri("t.tar", name) == f"t.tar#{name}"


def inside(prefix, kind, found):
    """All ids that a container may give."""
    if kind == "tar":
        keys = Keys(prefix)
        return [*(keys.id(name) for name in found), broken_id(prefix)]
    named = kind == "named table"
    rows = [row_id(prefix, n, name if named else None) for n, name in enumerate(found)]
    return [*rows, broken_id(prefix, 0), broken_id(prefix, 1024)]


def in_a_tree(path):
    """The order of stores that list folder by folder."""
    return path.split("/")


def ids_of(files, listed, **options):
    """The ids of files and containers, whose content is given, in an order of listing."""
    names, ids = Names("p", anyhow=options.pop("anyhow", False)), []
    for path in listed:
        if files[path] is None:
            ids.append(names.file(path))
        else:
            ids += inside(names.container(path, **options), *files[path])
    return ids


UNIVERSE = "a.tar a.tgz a.tgz.tar a/x a/b.tar a/b/x a.tgz/x a.tgz~2/x a~/x a.tar/x a~.tar a-b/x"


def test_ids_are_unique_for_all_sets_of_names_that_may_meet():
    found = "x x x~2 b/x ~broken /x".split()
    universe = {
        p: ("tar", found) if p.endswith((".tar", ".tgz")) else None for p in UNIVERSE.split()
    }
    for count in range(len(universe) + 1):
        for chosen in itertools.combinations(universe, count):
            for order in (None, in_a_tree):
                ids = ids_of(universe, sorted(chosen, key=order))
                assert len(set(ids)) == len(ids), sorted(chosen, key=order)
            for listed, whole in ((chosen, True), (chosen[::-1], False)):
                ids = ids_of(universe, listed, anyhow=True, whole=whole)
                assert len(set(ids)) == len(ids), listed


kinds = st.sampled_from(["tar", "table", "named table"])
# A path names a file, a container if it has something inside.
contents = st.tuples(kinds, st.lists(texts, max_size=4))
listings = st.dictionaries(paths, st.none() | contents, max_size=8)


@given(listings, st.sampled_from(["sorted", "tree", "anyhow"]), st.booleans(), st.randoms())
def test_ids_of_an_input_are_unique(files, order, whole, random):
    listed = sorted(files, key=in_a_tree if order == "tree" else None)
    if order == "anyhow":
        random.shuffle(listed)
    ids = ids_of(files, listed, anyhow=order == "anyhow", whole=whole)
    assert len(set(ids)) == len(ids)


sources = st.lists(st.tuples(st.none() | st.sampled_from(["real", "a", "b"]), names), max_size=4)


@given(sources)
def test_ids_of_several_inputs_are_unique(inputs):
    def clean(name):
        return name.replace("\0", "").strip(".") or "a"

    given = {f"/{n if s else ''}/{clean(name)}": s for n, (s, name) in enumerate(inputs)}
    parsed = _parsed([f"{source}={uri}" if source else uri for uri, source in given.items()])
    inner = ["", "a", "b", "real", "real/a", "a/b"]
    ids = [
        f"{one.prefix}/{folder}/x".strip("/")
        for one, folder in itertools.product(parsed, map(escaped, inner))
    ]
    assert len(set(ids)) == len(ids)
