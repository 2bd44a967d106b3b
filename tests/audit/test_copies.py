"""Shares of copies against a comparison of all pairs."""

import numpy as np
import pandas as pd
import pytest

from manifpt.audit.copies import shares, straddling


def table(seed: int, count: int = 150) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 15, dtype=np.uint64)[rng.integers(0, 15, count)]
    hashes ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    looks = pd.array([None if rng.random() < 0.2 else int(h) for h in hashes], pd.UInt64Dtype())
    return pd.DataFrame(
        {
            "pixel_sha256": rng.integers(0, 100, count).astype(str),
            "perceptual_hash": looks,
            "source": rng.choice(["a", "b", "c"], count),
            "split": rng.choice(["train", "test"], count),
        }
    )


def by_all_pairs(rows: pd.DataFrame, distance: int) -> dict[str, float]:
    wheres = {
        "within a class": lambda a, b: a.source == b.source,
        "across classes": lambda a, b: a.source != b.source,
        "across splits": lambda a, b: a.split != b.split,
    }
    counts = {f"{kind}, {where}": 0 for kind in ("exact", "near") for where in wheres}
    every = list(rows.itertuples())
    for i, a in enumerate(every):
        others = [b for j, b in enumerate(every) if i != j]
        exact = [b for b in others if a.pixel_sha256 == b.pixel_sha256]
        near = [
            b
            for b in others
            if a.pixel_sha256 != b.pixel_sha256
            and not (pd.isna(a.perceptual_hash) or pd.isna(b.perceptual_hash))
            and (int(a.perceptual_hash) ^ int(b.perceptual_hash)).bit_count() <= distance
        ]
        for where, lies in wheres.items():
            if where == "within a class":
                exact_here = any(lies(a, b) and b.Index < a.Index for b in exact)
            else:
                exact_here = any(lies(a, b) for b in exact)
            counts[f"exact, {where}"] += exact_here
            counts[f"near, {where}"] += any(lies(a, b) for b in near)
    return {name: number / len(every) for name, number in counts.items()}


@pytest.mark.parametrize("distance", [0, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_are_those_of_all_pairs(seed, distance):
    rows = table(seed)
    assert shares(rows, distance) == pytest.approx(by_all_pairs(rows, distance))


def test_a_prompt_on_both_sides_is_found():
    rows = pd.DataFrame(
        {"value": ["x", "x", "y", "y", None], "split": ["train", "test", "test", "test", "train"]}
    )
    found = straddling(rows["value"], rows["split"])
    assert found == (0.4, 1, 2, 1)
