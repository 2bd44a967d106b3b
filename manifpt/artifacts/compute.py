"""Images -> projections -> artifacts: a(x) = phi(x) - x*, x* the nearest real point.

ManiFPT (CVPR 2024), section 3. In the space ``image`` there is no manifold and the "artifact" is
the image itself: the baseline that every claim is measured against.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from manifpt import storage
from manifpt.artifacts.artifact_stage import (
    ARTIFACTS,
    AUGMENTED,
    EVALUATED,
    ArtifactStage,
    chunk_facts,
    counted_splits,
    evaluated_classes,
    total_moments,
)
from manifpt.artifacts.artifacts_format import (
    ArtifactCounts,
    ArtifactFacts,
    ArtifactsManifest,
    AugmentCard,
    CombinationManifest,
    ImageCounts,
)
from manifpt.artifacts.projection import Target, projectors_of, run_projection, targets_of
from manifpt.audit.sample import keep_sample
from manifpt.audit.training_audit import LEARNED_FROM, read_sample
from manifpt.engine import chunk_work, pipeline, pools
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, Unit, plan
from manifpt.images.degraded_copies import Augmentation
from manifpt.images.places import input_places
from manifpt.images.read import ImageReader, chunk_rows, metadata_of_units
from manifpt.images.sources import AS_FOUND, Reading, content_key, describe
from manifpt.images.splits import CONTENT, check_column, no_values, reading_with_split
from manifpt.images.stacks import reading_rule
from manifpt.manifold.projector import NEAREST, Projection
from manifpt.outputs import claims
from manifpt.outputs.formats import ChunkRecord, PartEntry
from manifpt.outputs.records import Records
from manifpt.spaces.space import LEARNED

# The kind of a folder that holds the artifacts of several spaces.
COMBINATION = "combination"


@dataclass(frozen=True)
class ArtifactRecipe:
    """The options of artifacts: the images, the spaces, the projection and the storage.

    Args:
        manifolds: URIs of manifolds, or of folders that hold some.
        plain: spaces to embed in without a manifold, such as ``image``, the images themselves.
        image_size: the image size of those spaces; a manifold has its own.
        tiles: the most native tiles of a larger image in those spaces; see ``targets_of``.
        projection: the rule for x* and its number of neighbours.
        sources: only these of the images that declare a source, as a benchmark's do.
        undeclared: the split of images that declare none: ``content`` (70 % train, 10 %
            validation, 20 % test by pixel hash) or the name of one split for all of them.
        split_by: a metadata column of the inputs, or ``folder``: images that declare no
            split and have one value get the same split; those without a value are split by content.
        labels: the columns that name sources and splits.
        augmentation: put degraded copies beside training images; counts of images leave them out,
            ``classes`` count them, too, and ``tiles`` the tiles of all.
        float16: store artifacts as float16 instead of float32.
        audit_images: the number of images of each source whose file properties are kept for the
            audit before a training; 0 keeps none.
        chunk: images, or tiles, of a file; artifacts of several runs with equal chunks can be
            read together.

    """

    manifolds: Sequence[str] = ()
    plain: Sequence[str] = ()
    image_size: int | None = None
    tiles: int | None = None
    projection: Projection = NEAREST
    sources: Sequence[str] | None = None
    undeclared: str = CONTENT
    split_by: str | None = None
    labels: Reading = AS_FOUND
    augmentation: Augmentation | None = None
    float16: bool = False
    audit_images: int = 0
    chunk: int | None = None

    @property
    def selection(self) -> Selection:
        """The selection of images by source."""
        return Selection(EVALUATED, tuple(self.sources) if self.sources else None)

    def units(self, inputs: Sequence[str], *, quiet: bool) -> list[Unit]:
        """Return the units of the images; raise where their splits can't be told."""
        if self.split_by is not None and self.undeclared != CONTENT:
            raise ManifptError(
                f"--split-by {self.split_by}: --split {self.undeclared} puts all on one side"
            )
        columns = [*ARTIFACTS, *AUGMENTED, *chunk_work.QUARANTINE]
        reading = reading_with_split(self.split_by, columns, self.labels)
        units = plan(inputs, self.selection, labelled=True, reading=reading, quiet=quiet)
        check_column(units, self.split_by)
        return units

    def targets(self, units: Sequence[Unit]) -> dict[str, Target]:
        """Return the spaces and projections by name, see ``targets_of``."""
        return targets_of(
            units,
            self.selection,
            self.manifolds,
            self.projection,
            plain=self.plain,
            image_size=self.image_size,
            tiles=self.tiles,
        )

    def augment_card(self, rule: DecodeRule) -> AugmentCard | None:
        """Return the card of the degraded copies of images decoded by ``rule``; None for none."""
        if self.augmentation is None:
            return None
        card: Any = {**self.augmentation.card(), "size": rule.size}
        return card | ({"tiles": rule.tiles} if rule.tiles else {})

    def key(self, units: Sequence[Unit], targets: Mapping[str, Target]) -> str:
        """Return the hash of all settings that decide the artifacts."""
        facts = [target.facts() for target in targets.values()]
        made_of = [
            [fact["space"], fact["decode"], fact["manifold_sha256"], fact["projection"]]
            for fact in facts
        ]
        made_by: list[Any] = [content_key(units), self.selection.sources, made_of]
        made_by += [self.undeclared, self.float16]
        augment = self.augment_card(_rule_of(targets))
        by = {"split_by": self.split_by} if self.split_by else None
        return storage.digest(made_by + [option for option in (augment, by) if option])

    def sample(self, units: Sequence[Unit], demand: pools.Demand) -> pd.DataFrame | None:
        """Return the file properties of ``audit_images`` images of each source; None for none."""
        if not self.audit_images:
            return None
        learned = Selection(LEARNED_FROM, self.selection.sources)
        some = [unit for unit in units if learned.keeps(unit.source, unit.split)]
        return read_sample(some, learned, self.audit_images, demand)

    def rows_of_file(self, targets: Mapping[str, Target]) -> int | None:
        """Return the number of images of a file: fewer if degraded copies are beside them."""
        if self.augmentation is None or self.chunk:
            return self.chunk
        sizes = [_rule_of(targets).size, *(target.space.size for target in targets.values())]
        return chunk_rows(max(sizes)) // (1 + self.augmentation.copies) + 1


def _rule_of(targets: Mapping[str, Target]) -> DecodeRule:
    """Return the rule by which images are decoded for all targets."""
    return reading_rule([target.rule for target in targets.values()])


def compute_artifacts(
    inputs: Sequence[str],
    output: str,
    recipe: ArtifactRecipe = ArtifactRecipe(),
    *,
    targets: dict[str, Target] | None = None,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> ArtifactsManifest | CombinationManifest:
    """Compute the artifacts of all images and publish them, one folder a split.

    Each of several spaces has a complete folder of its own; their rows are in the same order, and
    each image is decoded once for all of them.

    Args:
        inputs: ``URI`` or ``NAME=URI``; a benchmark's reals of its manifold are left out.
        output: folder of the artifacts.
        recipe: the options of the artifacts.
        targets: the spaces and projections themselves, such as an attributor's, instead of the
            recipe's.
        demand: the processes and their GPUs, the plan of the search, and the place of the
            manifold. The artifacts do not depend on it.
        terms: whether to replace an output of other settings, or a run that seems alive.

    """
    output = storage.absolute(output)
    units = recipe.units(inputs, quiet=demand.here)
    targets = targets or recipe.targets(units)
    names = [""] if len(targets) == 1 else list(targets)
    facts = dict(zip(names, [target.facts() for target in targets.values()], strict=True))
    key = recipe.key(units, targets)
    learned = any(target.space.name in LEARNED for target in targets.values())
    pool = pools.pool(demand, uses_gpu=learned)
    kind = "artifacts" if len(targets) == 1 else COMBINATION
    read = [*input_places(inputs, output), *(("--manifold", uri) for uri in recipe.manifolds)]
    with claims.claim(output, kind, key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        placed = projectors_of(targets, demand.search, pool)
        by_folder = dict(zip(names, placed.projectors, strict=True))
        how = recipe.undeclared, recipe.float16, recipe.augmentation, recipe.split_by
        build = partial(ArtifactStage, by_folder, *how)
        chunk = recipe.rows_of_file(targets)
        read_images = partial(
            ImageReader, selection=recipe.selection, metadata=metadata_of_units(units)
        )
        records = run_projection("artifacts", units, read_images, build, placed, output, chunk)
        with claim.abandoned_if_refused():
            counts = _counts(records, recipe, _rule_of(targets))
        common: ArtifactCounts = {**counts, "inputs": describe(inputs, units, recipe.labels)}
        sample = recipe.sample(units, demand)
        return publish_artifacts(claim, facts, records, common, sample)


def _counts(records: Records, recipe: ArtifactRecipe, rule: DecodeRule) -> ImageCounts:
    """Return the counts in the records of a pipeline; raise if no image could be used."""
    counts = pipeline.totals(records)
    if counts["ok"] == 0:
        reason = counts["by_error"] or f"no image of the splits {EVALUATED}"
        raise ManifptError(
            f"--input: none of {counts['rows_in']} images could be used ({reason}); check the input"
        )
    by_value = counted_splits(records)
    if recipe.split_by and by_value["without_value"] and not by_value["by_value"]:
        raise no_values(recipe.split_by)
    classes = evaluated_classes(records)
    found: ImageCounts = {**counts, "classes": classes}
    if rule.tiles:
        found["tiles"] = evaluated_classes(records, "tiles")
    if augment := recipe.augment_card(rule):
        images = sum(sum(by_class.values()) for by_class in classes.values())
        found |= {"augment": augment, "copies": images - counts["ok"]}
    if recipe.split_by:
        found["split_by"] = {"column": recipe.split_by, **by_value}
    return found


def publish_artifacts(
    claim: claims.Claim,
    facts: dict[str, ArtifactFacts],
    records: Sequence[ChunkRecord],
    common: ArtifactCounts,
    sample: pd.DataFrame | None = None,
) -> ArtifactsManifest | CombinationManifest:
    """Publish each space's artifacts and, if there are several, the folder that holds them.

    The ``sample`` of file properties is kept beside the artifacts of each space.
    """
    files = pipeline.parts(records)
    recorded = [one["moments"] for one in chunk_facts(records) if one]
    manifest: ArtifactsManifest | CombinationManifest
    for folder, fact in facts.items():
        mine = [moments[folder] for moments in recorded]
        moments = {s: total_moments([m[s] for m in mine if s in m]) for s in EVALUATED}
        start = storage.join(folder, "")
        inside = [_inside(folder, file) for file in files if file["path"].startswith(start)]
        body: ArtifactsManifest = {**fact, **common, "files": inside, "moments": moments}
        if sample is not None:
            claim.check()
            body["properties"] = keep_sample(storage.join(claim.folder, folder), sample)
        manifest = claim.publish(body, folder, "artifacts")
    if len(facts) > 1:
        quarantined = [file for file in files if file["folder"] == "quarantine"]
        whole: CombinationManifest = {**common, "members": list(facts), "files": quarantined}
        manifest = claim.publish(whole)
    pipeline.clear_records(claim.folder)
    return manifest


def _inside(folder: str, file: PartEntry) -> PartEntry:
    """Return a file's entry with its paths relative to a folder."""
    start = folder or "."
    path, inner = (posixpath.relpath(file[name], start) for name in ("path", "folder"))  # type: ignore[literal-required]
    return {**file, "path": path, "folder": inner}
