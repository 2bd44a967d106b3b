"""The explanation of a verdict: heads and their votes, nearest reals, p-values, degradations.

The same stages attribute an image here as in ``attribute``; no cluster is needed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.artifacts.projection import (
    Projected,
    Projector,
    decoding_of,
    project_images,
)
from manifpt.attribution.crawl.crawl_format import AttributionRow
from manifpt.attribution.crawl.stage import AttributeStage
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.tiled import pooled_tiles
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import USUAL, Rule
from manifpt.attribution.unknown.known import Outputs
from manifpt.attribution.unknown.open_set import count_as_unusual
from manifpt.errors import ManifptError
from manifpt.images.contents import content
from manifpt.images.decode import DecodeError
from manifpt.images.degrade import IDENTITY, Degradation
from manifpt.images.degraded_copies import view
from manifpt.images.raw import Raw
from manifpt.images.read import as_space_sees, images_table, pixels_of, row_of
from manifpt.images.sandbox import decode_all
from manifpt.images.stacks import image_starts, own_hashes
from manifpt.report.explanation_format import (
    DegradedVerdict,
    Explanation,
    HeadVote,
    NearestReal,
    ScoreShare,
    ShownVerdict,
    Strangeness,
    TileEvidence,
)
from manifpt.report.thumbnails import raws_of
from manifpt.report.tile_overlay import tile_evidence

NEIGHBOURS = 5
DEGRADATIONS = (
    "jpeg:95", "jpeg:75", "jpeg:50", "blur:0.5", "blur:1", "blur:2", "resize:0.75", "resize:0.5",
    "crop:0.9", "crop:0.7", "noise:0.02", "noise:0.05", "noise:0.1",
)  # fmt: skip


@dataclass(frozen=True)
class Explainer:
    """An attributor with its manifolds, in one process."""

    stage: AttributeStage
    projectors: list[Projector]

    @classmethod
    def open(cls, model: str, manifolds: Sequence[str] = (), rule: Rule = USUAL) -> "Explainer":
        """Open the attributor in a folder, and its manifolds there or where they lie now."""
        targets = trained_targets(TrainedAttributor.open(model), manifolds)
        projectors = [target.projector_alone() for target in targets.values()]
        return cls(AttributeStage(model, projectors, rule=rule), projectors)

    @cached_property
    def attributor(self) -> TrainedAttributor:
        """The attributor."""
        return self.stage.attributor

    def table(self, raws: Iterable[tuple[Raw, bytes]]) -> tuple[pa.Table | None, list[str]]:
        """Decode images; return their images table, and the errors of images without a row."""
        rule, sizes = decoding_of(self.projectors)
        rows, pixels, wrong = [], [], []
        for raw, found in decode_all(raws, rule, sizes):
            if isinstance(found, DecodeError):
                wrong.append(f"{found.code}: {found}")
                continue
            row, images = row_of(raw, found, rule, sizes)
            rows.append(row)
            pixels.append(images)
        return (images_table(rows, pixels, sizes) if rows else None), wrong

    def verdicts(self, table: pa.Table) -> list[AttributionRow]:
        """Return the rows of attributions of an images table."""
        rows: list[AttributionRow] = self.stage(table).tables["attributions"].to_pylist()
        return rows

    def projected(self, table: pa.Table) -> list[Projected]:
        """Return the images of a table in each space."""
        return project_images(self.projectors, table)

    def outputs(self, made: Sequence[Projected]) -> Outputs:
        """Return the network's outputs for images."""
        return pooled_tiles(self.outputs_of_rows(made), image_starts(made[0].rows))

    def outputs_of_rows(self, made: Sequence[Projected]) -> Outputs:
        """Return the network's outputs for rows, which are tiles where images have some."""
        return self.attributor.outputs([one.artifacts for one in made])

    def tiles(self, made: Sequence[Projected], sources: Sequence[str]) -> list[list[TileEvidence]]:
        """Return for each image the evidence of its tiles for a source, the strongest first.

        It is empty for an attributor without tiles.
        """
        if not self.attributor.tiled:
            return [[] for _ in sources]
        classes, rows = self.attributor.classes, made[0].rows
        each = self.attributor.log_fused(self.outputs_of_rows(made).logits)
        places = list(zip(*(rows[name].to_pylist() for name in ("tile_x", "tile_y")), strict=True))
        ends = [*image_starts(rows)[1:], rows.num_rows]
        return [
            tile_evidence(each[begin:end, classes.index(source)], places[begin:end], len(classes))
            for begin, end, source in zip(image_starts(rows), ends, sources, strict=True)
        ]


def opened_image(image: str, explainer: Explainer) -> pa.Table:
    """Return the images table of one image: a file, or a member of a tar as ``a.tar#name``."""
    rule, _ = decoding_of(explainer.projectors)
    uri = image if image.startswith(("http://", "https://")) else storage.absolute(image)
    raws = [] if uri != storage.absolute(image) else list(raws_of({uri}))
    if not raws:
        try:
            raws = [(Raw(uri, uri, b""), content(uri, rule.max_bytes))]
        except DecodeError as error:
            raise ManifptError(f"IMAGE {image}: {error.code}: {error}; check the path") from None
    made = [(raw._replace(id=uri, data=data), data) for raw, data in raws]
    table, wrong = explainer.table(made)
    if table is None:
        raise ManifptError(f"IMAGE {image}: {wrong[0]}; give an image that can be decoded")
    return table


def votes(explainer: Explainer, outputs: Outputs) -> list[HeadVote]:
    """Return the probabilities of each head for one image, and its weight."""
    manifest, classes = explainer.attributor.manifest, explainer.attributor.classes
    heads: list[str] = manifest.get("heads") or [branch["name"] for branch in manifest["branches"]]
    found: list[HeadVote] = []
    for name, weight in zip(heads, manifest["weights"], strict=True):
        alone = np.zeros(len(manifest["weights"]))
        alone[len(found)] = weight
        share = explainer.attributor.fused(outputs.logits[:1], alone.tolist())[0]
        ranked = np.argsort(-share, kind="stable")[:3]
        vote: HeadVote = {
            "head": name,
            "weight": float(weight),
            "answers": [{"source": classes[n], "probability": float(share[n])} for n in ranked],
        }
        found.append(vote)
    return found


def strangeness(explainer: Explainer, outputs: Outputs) -> Strangeness | None:
    """Return the scores of the unknown of one image; None if the attributor has none."""
    unknown, open_set = explainer.attributor.unknown(outputs), explainer.attributor.open_set
    if unknown is None or open_set is None:
        return None
    shares = (count_as_unusual(open_set.usual, unknown.scores) + 1) / (len(open_set.usual) + 1)
    scores: list[ScoreShare] = [
        {"score": name, "value": float(value), "p": float(p)}
        for name, value, p in zip(open_set.score_names, unknown.scores[0], shares[0], strict=True)
    ]
    limit = explainer.stage.rule.false_rejection
    return {"p": float(unknown.p_value[0]), "limit": limit, "scores": scores}


def nearest_reals(projector: Projector, table: pa.Table, tile: int = 0) -> list[NearestReal]:
    """Return the nearest reals of one image in a space; those of a tile where it has tiles."""
    if projector.manifold is None or projector.searcher is None:
        return []
    seen = as_space_sees(table, projector.rule)
    seen = seen.slice(tile if seen.num_rows > 1 else 0, 1)
    embedded = projector.space.embed(pixels_of(seen)).reshape(1, -1)
    count = min(NEIGHBOURS, int(projector.manifold.manifest["reals"]))
    hashes = np.array(own_hashes(seen), dtype=object)
    found = projector.searcher.nearest(embedded, count, hashes)
    percentiles = projector.manifold.percentile(found.distance[0])
    columns = (found.id[0].tolist(), found.distance[0].tolist(), percentiles.tolist())
    return [
        {"id": id, "distance": distance, "percentile": percentile}
        for id, distance, percentile in zip(*columns, strict=True)
    ]


def degraded_verdicts(
    explainer: Explainer, table: pa.Table, levels: Sequence[str]
) -> list[DegradedVerdict]:
    """Return the verdict on one image at each degradation, the image itself first."""
    hows = list(dict.fromkeys(map(Degradation.parse, (IDENTITY, *levels))))
    filter_name = explainer.projectors[0].rule.filter
    copies = pa.concat_tables([view(table, how, filter_name) for how in hows])
    rows = explainer.verdicts(copies)
    answers = [(row["prediction"], row["decision"]) for row in rows]
    return [
        {"degradation": str(how), "same": answer == answers[0], **_shown(row)}
        for how, answer, row in zip(hows, answers, rows, strict=True)
    ]


def _shown(row: AttributionRow) -> ShownVerdict:
    return {
        "prediction": row["prediction"],
        "probability": row["probability"],
        "decision": row["decision"],
        "unknown_p": row["unknown_p"],
    }


def changes(levels: Sequence[DegradedVerdict]) -> list[str]:
    """Return for each kind of degradation the first of its levels that changes the verdict."""
    first: dict[str, str] = {}
    for level in levels:
        kind = level["degradation"].partition(":")[0]
        if not level["same"]:
            first.setdefault(kind, level["degradation"])
    return list(first.values())


def explanation(
    explainer: Explainer, table: pa.Table, levels: Sequence[str] = DEGRADATIONS
) -> Explanation:
    """Return the explanation of an image, the only one of an images table, as JSON values."""
    verdict = explainer.verdicts(table)[0]
    made = explainer.projected(table)
    outputs = explainer.outputs(made)
    degraded = degraded_verdicts(explainer, table, levels)
    names = (branch["name"] for branch in explainer.attributor.branches)
    tiles = explainer.tiles(made, [verdict["prediction"]])[0]
    strongest = tiles[0]["tile"] if tiles else 0  # the tile that the pictures show, too
    reals = {
        name: nearest_reals(projector, table, strongest)
        for name, projector in zip(names, explainer.projectors, strict=True)
        if projector.manifold is not None
    }
    return {
        "image": verdict["id"],
        "model": explainer.attributor.uri,
        **_shown(verdict),
        "top_k": verdict["top_k"],
        "votes": votes(explainer, outputs),
        "unknown": strangeness(explainer, outputs),
        "nearest_reals": reals,
        "tile_evidence": tiles,
        "leaks": {
            "in_training": verdict["in_training"],
            "near_training": verdict["near_training"],
            "in_manifold": verdict["in_manifold"],
        },
        "degraded": degraded,
        "changed_by": changes(degraded),
    }
