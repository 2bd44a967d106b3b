"""Table 5 of the paper, and its theory: artifacts against design choices and distributions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from manifpt.jobs.reproduction.benchmark_study import Study
from manifpt.jobs.reproduction.methods import (
    DENOISED,
    FEATURES,
    NEAREST,
    PLAIN,
    TANGENT,
    ArtifactPlace,
)
from manifpt.jobs.reproduction.section import Section, markdown_table

if TYPE_CHECKING:
    from manifpt.evaluation.clustering import CausalEffect, ClusterAgreement
    from manifpt.evaluation.features import Features
    from manifpt.evaluation.theory import RankTable

REAL = "real"
CHOICES = (
    "upsampling",
    "loss",
    "normalisation",
    "activation",
    "skip",
    "discriminator_normalisation",
)
COMPONENTS = 50
# Artifacts whose clusters are compared; the first and last are controls without a manifold.
SPACES = {
    "image": ArtifactPlace(PLAIN, "image"),
    "rgb, nearest": ArtifactPlace(NEAREST, "rgb"),
    "rgb, tangent plane": ArtifactPlace(TANGENT, "rgb"),
    "freq, nearest": ArtifactPlace(NEAREST, "freq"),
    "rgb, denoiser": ArtifactPlace(DENOISED, "rgb"),
    "residual, tangent plane": ArtifactPlace(TANGENT, "residual"),
    "residual statistics": ArtifactPlace(PLAIN, "residual"),
}


def principal_components(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the first COMPONENTS principal components of N x d vectors, N x at most COMPONENTS."""
    from sklearn.decomposition import PCA

    count = min(COMPONENTS, *vectors.shape)
    found: np.ndarray = PCA(count, random_state=seed).fit_transform(vectors)
    return found


def table_5(study: Study) -> Section:
    """Compare clusters of artifacts with each design choice; measure effects of single choices."""
    from manifpt.evaluation.clustering import causal_effects, cluster_agreement
    from manifpt.evaluation.design_choices import read_design_choices, recipes_of
    from manifpt.evaluation.features import artifact_features

    choices, seeds = read_design_choices(study.benchmark)
    recipes = recipes_of(choices)
    agreements: dict[str, dict[str, ClusterAgreement]] = {}
    effects: dict[str, dict[str, CausalEffect]] = {}
    for title, place in SPACES.items():
        features = artifact_features(study.artifacts_in(place))
        known = np.isin(features.sources, list(choices))
        components = principal_components(features.vectors[known])
        sources = features.sources[known]
        agreements[title] = {
            choice: cluster_agreement(
                components,
                [recipes[name] for name in sources],
                [choices[name].get(choice, "") for name in sources],
            )
            for choice in CHOICES
            if len({choices[name].get(choice, "") for name in set(sources)} - {""}) > 1
        }
        means = {name: components[sources == name].mean(0) for name in np.unique(sources)}
        present = {name: choices[name] for name in means}
        effects[title] = causal_effects(means, present, {name: seeds[name] for name in means})
    text = f"{_agreements(agreements)}\n\n{_effects(effects)}"
    numbers = {
        "agreement": {t: {c: a._asdict() for c, a in of.items()} for t, of in agreements.items()},
        "effects": {t: {c: e._asdict() for c, e in of.items()} for t, of in effects.items()},
    }
    return Section("table5", "Fingerprints and design choices", text, numbers)


def _adjusted(
    values: Mapping[str, Mapping[str, "ClusterAgreement | CausalEffect"]],
) -> dict[str, float]:
    """Return Holm's p-values over a whole table, by ``row/column``."""
    from manifpt.evaluation.significance import holm

    return holm({f"{t}/{c}": cell.p for t, of in values.items() for c, cell in of.items()})


def _agreements(found: Mapping[str, Mapping[str, "ClusterAgreement"]]) -> str:
    adjusted = _adjusted(found)
    names = list(next(iter(found.values())))
    rows = [
        [
            title,
            *(_cell(f"{of[n].nmi:.3f} ({of[n].ami:.3f})", adjusted[f"{title}/{n}"]) for n in names),
        ]
        for title, of in found.items()
    ]
    return (
        "Test images of generators that have the choice: k-means on the first "
        f"{COMPONENTS} principal components, with as many clusters as the choice has values. NMI, "
        "and in brackets AMI, which is 0 for clusters by chance. p-values exchange values between "
        "recipes, and are corrected over the table (Holm); those above 0.05 have none here.\n\n"
        + markdown_table(["artifacts", *names], rows)
    )


def _effects(found: Mapping[str, Mapping[str, "CausalEffect"]]) -> str:
    adjusted = _adjusted(found)
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    rows = [
        [title, *(_cell(f"{of[n].ratio:.2f}", adjusted[f"{title}/{n}"]) for n in names)]
        for title, of in found.items()
    ]
    pairs = ", ".join(f"{n} {next(iter(found.values()))[n].pairs}" for n in names)
    seeds = next(iter(next(iter(found.values())).values())).seed_pairs
    return (
        "The movement of the mean artifact where one choice is changed and all else is the same, "
        f"over its movement with a new seed. Pairs of generators: {pairs}; of seeds {seeds}.\n\n"
        + markdown_table(["artifacts", *names], rows)
    )


def _cell(text: str, p: float) -> str:
    return f"{text}, p = {p:.3f}" if p < 0.05 else text


def theory(study: Study) -> Section:
    """Compare the mean artifact length of generators with other measures of their samples."""
    from manifpt.evaluation.design_choices import read_design_choices, recipes_of
    from manifpt.evaluation.features import artifact_features
    from manifpt.evaluation.theory import rank_table

    recipes = recipes_of(read_design_choices(study.benchmark)[0])
    vectors = artifact_features(study.artifacts_in(ArtifactPlace(FEATURES, "rgb")))
    artifacts = artifact_features(study.artifacts_in(ArtifactPlace(NEAREST, "rgb")))
    # One generator for each recipe: a second seed is not independent of the first.
    names = [name for name in np.unique(vectors.sources) if recipes.get(name) == name]
    table = rank_table(
        _of(vectors, REAL),
        {name: _of(vectors, name) for name in names},
        {name: _of(artifacts, name) for name in names},
    )
    correlations = {name: c._asdict() for name, c in table.correlations.items()}
    numbers = {"generators": table.rows, "correlations": correlations, "samples": table.samples}
    return Section("theory", "Artifacts and distributions", _rank_text(table), numbers)


def _of(features: "Features", name: str) -> np.ndarray:
    vectors: np.ndarray = features.vectors[features.sources == name]
    return vectors


def _rank_text(table: "RankTable") -> str:
    from manifpt.evaluation.significance import holm

    measures = list(next(iter(table.rows.values())))
    rows = [[name, *(f"{row[m]:.3g}" for m in measures)] for name, row in table.rows.items()]
    adjusted = holm({name: c.p for name, c in table.correlations.items()})
    correlated = [
        [name, f"{c.rho:+.2f}", f"{adjusted[name]:.4f}"] for name, c in table.correlations.items()
    ]
    return (
        f"Pixels, {table.samples} test images of each generator against as yet unseen reals; one "
        "generator for each recipe. An artifact is zero exactly where a generator's support lies "
        "in the manifold, so its length should fall with precision. A generator that covers few "
        "reals well has short artifacts and is far from the reals as a distribution, so the length "
        "says nothing of recall, and its order need not be that of distances of distributions.\n\n"
        + markdown_table(["measure", "Spearman with artifact length", "p, Holm"], correlated)
        + "\n\n"
        + markdown_table(["generator", *(m.replace("_", " ") for m in measures)], rows)
    )
