"""Pooled evidence: known values, order, copies, foreign images; and the table at any size."""

from hashlib import sha256

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifpt import storage
from manifpt.attribution.crawl import grouping
from manifpt.attribution.crawl.pooling import (
    FEWEST,
    ImageEvidence,
    Pooling,
    bootstrap_interval,
    log_evidence,
    priors_of,
)
from manifpt.attribution.unknown.decision import Rule
from manifpt.attribution.unknown.profiles import Profiles
from manifpt.evaluation.groups import Scores, measured, table

CLASSES = ("real", "gan", "vae")
POOLING = Pooling(CLASSES, (1 / 3,) * 3, 0.1)


def images(count, of=1, seed=0, strength=1.0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1, (count, 3))
    scores[:, of] += strength
    odds = np.exp(scores)
    return odds / odds.sum(1, keepdims=True)


def profiled(rule=Rule()):
    """A pooling that knows 60 validation images of each class."""
    labels = np.repeat(np.arange(3), 60)
    p = np.concatenate([images(60, of=c, seed=50 + c) for c in range(3)])
    return Pooling(CLASSES, POOLING.priors, 0.1, rule, Profiles(coordinates(p), labels))


def coordinates(p):
    """The logits of probabilities, centred."""
    return np.log(p) - np.log(p).mean(1, keepdims=True)


def names(count, start=0):
    return [sha256(str(n).encode()).hexdigest() for n in range(start, start + count)]


def judged(probabilities, hashes=None, decisions=None, pooling=POOLING, known=True):
    count = len(probabilities)
    beside = coordinates(probabilities) if known else None
    found = ImageEvidence(hashes or names(count), probabilities, decisions or ["x"] * count, beside)
    return pooling.judge("g", found)


def test_two_images_pool_as_the_formula_says():
    p = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    priors = np.array([0.5, 0.25, 0.25])
    product = np.ones(3)
    for line in p:
        product *= 0.9 * line / priors + 0.1
    found = judged(p, pooling=Pooling(CLASSES, tuple(priors), 0.1))
    assert found["prediction"] == "vae"
    assert found["probability"] == pytest.approx(product[2] / product.sum(), rel=1e-12)
    assert (found["agreeing"], found["probability_low"]) == (0.5, None)


def test_one_image_without_foreign_ones_keeps_its_probabilities():
    p = np.array([[0.2, 0.5, 0.3]])
    assert judged(p, pooling=Pooling(CLASSES, (1 / 3,) * 3, 1e-12))["probability"] == pytest.approx(
        0.5
    )


def test_no_image_weighs_more_than_the_bound_and_few_do_not_decide():
    sure = np.array([[1e-12, 1 - 2e-12, 1e-12]])
    evidence = log_evidence(sure, np.array(POOLING.priors), 0.1)
    assert np.ptp(evidence) <= np.log((0.9 * 3 + 0.1) / 0.1) + 1e-9
    mixed = np.concatenate([images(18, of=2, strength=2), np.repeat(sure, 2, 0)])
    assert judged(mixed)["prediction"] == "vae"
    # Without a share for foreign images, the two decide.
    assert judged(mixed, pooling=Pooling(CLASSES, (1 / 3,) * 3, 1e-12))["prediction"] == "gan"


@given(st.permutations(range(12)))
def test_order_changes_nothing(order):
    p, hashes = images(12), names(12)
    found = judged(p[list(order)], [hashes[n] for n in order])
    assert found == judged(p, hashes)


def test_copies_count_once():
    p, hashes = images(6), names(6)
    often = judged(np.concatenate([p, p[:1].repeat(50, 0)]), hashes + hashes[:1] * 50)
    assert often == judged(p, hashes) | {"images": 56}
    assert often["counted"] == 6


def test_the_interval_is_about_as_wide_as_new_groups_differ():
    rng = np.random.default_rng(1)
    low, high = bootstrap_interval(
        log_evidence(images(20, strength=0.5), np.array(POOLING.priors)), 1, 3
    )
    assert 0 <= low < high <= 1
    assert bootstrap_interval(np.zeros((FEWEST - 1, 3)), 0, 0) is None
    # About the nominal share of the intervals of a population's groups holds its own probability.
    evidence = log_evidence(images(4000, strength=0.1, seed=5), np.array(POOLING.priors))
    true = evidence.mean(0) * 30
    true = np.exp(true - true.max())
    true = true[1] / true.sum()
    inside = 0
    for n in range(100):
        low, high = bootstrap_interval(evidence[rng.integers(4000, size=30)], 1, n)
        inside += low <= true <= high
    assert 85 <= inside <= 100


def test_decisions():
    assert judged(images(10, strength=3))["decision"] == "generator"
    assert judged(images(10, of=0, strength=3))["decision"] == "real"
    assert judged(np.full((9, 3), 1 / 3))["decision"] == "unsure"
    assert (
        judged(images(10, strength=3), decisions=["unknown"] * 6 + ["x"] * 4)["decision"]
        == "unknown"
    )


def test_priors_are_those_of_training_and_even_after_an_extension():
    manifest = {"classes": ["a", "b"], "rows": {"train": {"a": 30, "b": 10}}}
    assert priors_of(manifest) == (0.75, 0.25)
    assert priors_of(manifest | {"extensions": [{}]}) == (0.5, 0.5)


def test_a_group_like_no_class_is_unknown_though_its_images_are_not():
    rng = np.random.default_rng(2)
    pooling, flat = profiled(), np.full((40, 3), 1 / 3) + rng.uniform(-0.02, 0.02, (40, 3))
    found = judged(flat, pooling=pooling)
    assert (found["decision"], found["unknown"]) == ("unknown", 0)
    assert found["unknown_p"] <= 0.01
    usual = judged(images(40, seed=7), pooling=pooling)
    assert (usual["decision"], usual["unknown_p"] > 0.05) == ("generator", True)
    never = judged(flat, pooling=profiled(Rule(false_rejection=0)))
    assert never["decision"] == "unsure"
    few = judged(flat[: FEWEST - 1], pooling=pooling)
    assert (few["unknown_p"], few["decision"]) == (None, "unsure")
    # An attributor that can't tell.
    assert judged(flat, pooling=pooling, known=False)["unknown_p"] is None
    assert judged(flat)["unknown_p"] is None


def test_a_group_that_is_surer_of_a_class_than_its_own_images_are_is_unknown():
    """Its probabilities, pooled, are those of the class; a twin of its source makes such."""
    found = judged(images(40, strength=4, seed=3), pooling=profiled())
    assert (found["prediction"], found["decision"]) == ("gan", "unknown")
    assert found["probability"] > 0.999


def test_larger_groups_are_told_better_and_foreign_images_cost_little():
    truth = np.repeat(np.arange(3), 60)
    p = np.concatenate([images(60, of=c, seed=c, strength=1) for c in range(3)])
    rng = np.random.default_rng(1)
    scores = Scores(p, np.array(CLASSES, dtype=object)[truth], coordinates(p))
    flat = np.full((60, 3), 1 / 3) + rng.uniform(-0.02, 0.02, (60, 3))
    others = Scores(flat, np.array(["new"] * 60, dtype=object), coordinates(flat))
    made = {n: measured(scores, others, profiled(), n) for n in (1, 2, 5, 10, 50)}
    rows = {(r["size"], r["foreign"]): r for one in made.values() for r in one["known"]}
    found = {key: np.mean(row["accuracies"]) for key, row in rows.items()}
    one = (p.argmax(1) == truth).mean()
    assert found[1, 0] == pytest.approx(one, abs=0.06)
    assert found[10, 0] > 0.95 > found[5, 0] > found[1, 0]
    assert found[50, 10] > 0.95
    assert (2, 1) not in found
    assert rows[1, 0]["false_rejections"] is None
    assert np.mean(rows[10, 0]["false_rejections"]) < 0.1
    (new,) = made[10]["unknown"]
    assert new["source"] == "new"
    assert min(new["found"]) > 0.9
    assert min(new["aurocs"]) > 0.95
    assert made[2]["unknown"] == []
    text = table({kind: [r for m in made.values() for r in m[kind]] for kind in made[1]})
    assert len(text.splitlines()) == len(rows) + 3 + 3


@pytest.fixture
def evidence(tmp_path):
    """Three files of 40 images of 7 groups, one of them null, as attribution writes them."""
    rng = np.random.default_rng(0)
    files, rows = [], []
    for part in range(3):
        groups = [None if n == 0 else f"site{n}" for n in rng.integers(0, 8, 40)]
        p = images(40, of=part, seed=part)
        hashes = names(40, start=35 * part)  # the last five again in the next
        table = pa.table({"id": [f"{g}/x" for g in groups], "sha256": hashes, "site": groups})
        beside, where = pa.table({"decision": ["generator"] * 40}), coordinates(p)
        made = grouping.evidence_of(table, "site", beside, p, where)
        path = f"evidence/{part}.parquet"
        storage.write_bytes(f"{tmp_path}/{path}", storage.parquet_bytes(made))
        files.append({"path": path, "folder": "evidence", "rows": made.num_rows})
        given = zip(groups, hashes, p.astype(np.float32), where.astype(np.float32), strict=True)
        rows += [row for row in given if row[0]]
    return files, rows


@pytest.mark.parametrize("limit", [10**6, 25])
def test_the_table_is_that_of_each_group_by_itself(evidence, tmp_path, monkeypatch, limit):
    files, rows = evidence
    monkeypatch.setattr(grouping, "RUN_ROWS", limit)
    monkeypatch.setattr(grouping, "BUCKET_ROWS", limit)
    pooling = profiled()
    parts, counts = grouping.write_groups(str(tmp_path), files, pooling)
    assert len(parts) == (1 if limit > 100 else -(-len(rows) // 25))
    tables = [storage.read_parquet(f"{tmp_path}/{part['path']}") for part in parts]
    found = {row["group"]: row for table in tables for row in table.to_pylist()}
    assert sum(part["rows"] for part in parts) == len(found) == len({r[0] for r in rows})
    for group, row in found.items():
        mine = [r for r in rows if r[0] == group]
        p = np.array([r[2] for r in mine], dtype=np.float64)
        where, decisions = np.array([r[3] for r in mine]), ["generator"] * len(mine)
        expected = pooling.judge(group, ImageEvidence([r[1] for r in mine], p, decisions, where))
        assert row == expected
        assert row["unknown_p"] > 0
    assert counts == {"groups": len(found), "images": len(rows)}
    assert grouping.write_groups(str(tmp_path), files, pooling)[0] == parts


def only_group(folder, paths):
    """The one group of evidence files of 20 rows or more."""
    files = [{"path": path, "folder": "evidence", "rows": 20} for path in paths]
    (made,), _ = grouping.write_groups(str(folder), files, profiled())
    (row,) = storage.read_parquet(f"{folder}/{made['path']}").to_pylist()
    return row


def test_a_group_larger_than_the_most_is_judged_by_its_first_hashes(tmp_path, monkeypatch):
    from manifpt.attribution.crawl import pooling

    for module in (pooling, grouping):
        monkeypatch.setattr(module, "MOST", 8)
    p, hashes = images(40).astype(np.float32), names(40)
    views, where = p[::-1].copy(), coordinates(p)
    table = pa.table({"id": ["a/x"] * 40, "sha256": hashes})
    rows = pa.table({"decision": ["generator"] * 40})
    made = grouping.evidence_of(table, grouping.FOLDER, rows, views, where)
    storage.write_bytes(f"{tmp_path}/e.parquet", storage.parquet_bytes(made))
    row = only_group(tmp_path, ["e.parquet"])
    first = np.argsort(hashes)[:8]
    mine = [hashes[n] for n in first]
    probabilities, its_own = (of[first].astype(np.float64) for of in (views, where))
    found = ImageEvidence(mine, probabilities, ["x"] * 8, its_own)
    assert row == profiled().judge("a", found, 40)


@pytest.mark.parametrize("beside", ["unknown_score", "itself"])
def test_evidence_of_earlier_versions_is_read_beside_that_of_this(tmp_path, beside):
    p, files = images(40).astype(np.float32), []
    for part, more in enumerate(({}, {beside: [0.5] * 20})):
        rows = slice(20 * part, 20 * part + 20)
        table = pa.table({"id": ["a/x"] * 20, "sha256": names(20, 20 * part)})
        decisions = pa.table({"decision": ["generator"] * 20})
        made = grouping.evidence_of(table, grouping.FOLDER, decisions, p[rows], None)
        for name, column in more.items():
            made = made.append_column(name, pa.array(column))
        storage.write_bytes(f"{tmp_path}/{part}.parquet", storage.parquet_bytes(made))
        files.append(f"{part}.parquet")
    row = only_group(tmp_path, files)
    found = ImageEvidence(names(40), p.astype(np.float64), ["generator"] * 40)
    assert row == profiled().judge("a", found)
