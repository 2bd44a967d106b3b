"""Accuracy against the number of reals in the manifold, in the space residual."""

from manifpt import storage
from manifpt.evaluation.evaluation_format import EvaluationSummary
from manifpt.jobs import build_manifold, compute_artifacts, evaluate, train_attribution
from manifpt.jobs.reproduction.benchmark_study import Study, sources_flags
from manifpt.jobs.reproduction.methods import FEATURES, ArtifactPlace
from manifpt.jobs.reproduction.section import Section, accuracy_of, markdown_table

SPACE, PROJECTORS = "residual", ("nearest", "mean", "tangent")
# The smallest manifold, and the ratio of each next size to the last.
LEAST, FACTOR = 125, 2


def reals_curve(study: Study) -> Section:
    """Train discriminants on artifacts of manifolds of growing samples of the reals."""
    from manifpt.manifold.stored import StoredManifold

    whole = storage.join(study.manifolds, SPACE)
    every = int(StoredManifold.open(whole).manifest["reals"])
    sizes, size = [], LEAST
    while size < every:
        sizes.append(size)
        size *= FACTOR
    embeddings = study.artifacts_in(ArtifactPlace(FEATURES, SPACE))
    numbers: dict[str, dict[int, EvaluationSummary]] = {name: {} for name in PROJECTORS}
    for size in (*sizes, every):
        manifold = whole
        if size < every:
            manifold = study.place("reals", f"manifold-{size}")
            flags = ("--input", whole, "--reals", str(size))
            study.once(f"manifold of {size} reals", build_manifold, manifold, *flags)
        for projector in PROJECTORS:
            numbers[projector][size] = _accuracy(study, embeddings, manifold, projector, size)
    rows = [
        [str(size), *(accuracy_of([numbers[name][size]]) for name in PROJECTORS)]
        for size in (*sizes, every)
    ]
    text = (
        f"Artifacts in the space {SPACE}, linear discriminant analysis; the reals are random "
        "samples of one manifold.\n\n" + markdown_table(["reals", *PROJECTORS], rows)
    )
    found = {
        name: {size: metrics["accuracy"] for size, metrics in each.items()}
        for name, each in numbers.items()
    }
    return Section("reals", "Accuracy against the number of reals", text, found)


def _accuracy(
    study: Study, embeddings: str, manifold: str, projector: str, size: int
) -> EvaluationSummary:
    """Return the metrics of artifacts of one projector on one manifold."""
    artifacts, model, result = (
        study.place("reals", f"{kind}-{size}-{projector}")
        for kind in ("artifacts", "attributor", "evaluation")
    )
    title = f"{projector} of {size} reals"
    projected = ("--input", embeddings, "--manifold", manifold, "--projector", projector)
    study.once(f"artifacts, {title}", compute_artifacts, artifacts, *projected)
    given = ("--input", artifacts)
    known = sources_flags(study.config.sources)
    how = ("--vectors", "lda", *study.config.audit_flags)
    study.once(f"train, {title}", train_attribution, model, *given, *known, *how)
    return study.once(f"evaluate, {title}", evaluate, result, *given, *known, "--model", model)
