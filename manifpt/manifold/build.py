"""Build a manifold from real images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from manifpt import storage
from manifpt.engine import pipeline, pools
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Unit, plan
from manifpt.images.decode import DecodeCard
from manifpt.images.places import input_places
from manifpt.images.probe import natural_size, usual_tiles
from manifpt.images.sources import (
    AS_FOUND,
    MANIFOLD_REALS,
    REAL,
    Reading,
    content_key,
    describe,
)
from manifpt.images.splits import reading_with_split
from manifpt.images.stacks import reading_rule
from manifpt.manifold.embed import TrainingReals, clear_embedded, embed_units, write_shards
from manifpt.manifold.manifold_format import (
    InputFacts,
    ManifoldManifest,
    ManifoldsManifest,
    ShardEntry,
)
from manifpt.manifold.prepare import prepare
from manifpt.manifold.shard import ROWS
from manifpt.manifold.stored import MANIFOLDS
from manifpt.nets.device import precision_of
from manifpt.outputs import claims
from manifpt.outputs.formats import ChunkRecord, RowCounts
from manifpt.spaces import Space, SpaceSettings, make_space
from manifpt.spaces.learned import compiled, keep_weights, weights_entry
from manifpt.spaces.space import LEARNED, largest_size

PIXELS = "rgb"  # the space whose vectors a denoiser takes


def content_sha256(draft: ManifoldManifest) -> str:
    """Return the hash of a manifold's space, decode rule, metric and reals.

    A covariance is part of the metric: reals that were appended later are not in it.
    """
    total = sum(int(entry["content"], 16) for entry in draft["shards"]) % 2**256
    whitening = [draft["whitening"]["sha256"]] if "whitening" in draft else []
    settings = [draft["space"], draft["decode"], draft["metric"], *whitening]
    return storage.digest([*settings, f"{total:064x}"])


def no_reals(counts: RowCounts) -> ManifptError:
    """Return the error for inputs without a usable image."""
    reason = counts["by_error"] or "no image of source real and split manifold"
    return ManifptError(
        f"--input: none of {counts['rows_in']} images could be used ({reason}); check the input"
    )


@dataclass(frozen=True)
class ManifoldSettings:
    """The settings of a manifold besides its reals and the names of its spaces.

    ``tiles`` is the largest number of native tiles of an image larger than the size; 0 resizes it.
    ``factory`` is FAISS's name of an approximate index that is built beside exact search;
    ``geometry`` is for the Riemannian projector; ``denoiser`` are the steps of its training, 0 for
    none. ``spaces`` are the options of spaces that are given by name.
    """

    shards: int = 4
    image_size: int | None = None
    filter_name: str = "bicubic"
    metric: str = "euclidean"
    factory: str | None = None
    geometry: bool = False
    tiles: int | None = None
    denoiser: int = 0
    spaces: SpaceSettings = field(default_factory=SpaceSettings)

    def learned(self) -> list[Any]:
        """Return the settings that decide the models learned from the vectors, for keys."""
        # Manifolds of earlier versions had no denoiser.
        denoiser = [self.denoiser] if self.denoiser else []
        return [self.metric, self.factory, self.geometry, *denoiser]


def _spaces(
    names: Sequence[str], units: Sequence[Unit], settings: ManifoldSettings, pool: pools.Pool
) -> list[Space]:
    """Return spaces by name, each for images of the size that suits it."""
    if "image" in names:
        raise ManifptError("--space image: has no manifold; give it to compute_artifacts")
    if settings.denoiser and PIXELS not in names:
        raise ManifptError(f"--denoiser: is of pixels, not of {'+'.join(names)}; add --space rgb")
    if len(set(names)) < len(names):
        raise ManifptError(f"--space {'+'.join(names)}: name each space once")
    options, image_size = settings.spaces, settings.image_size
    options = replace(options, precision=precision_of(options.precision, pool))
    natural = image_size or natural_size(units, MANIFOLD_REALS)
    sizes = [image_size or min(natural, largest_size(name, options)) for name in names]
    spaces = [make_space(name, size, options) for name, size in zip(names, sizes, strict=True)]
    for space in spaces:
        _ = space.shape  # loads its network: weights that do not fit are an error now
    return spaces


def _rules(
    spaces: Sequence[Space], units: Sequence[Unit], settings: ManifoldSettings
) -> list[DecodeRule]:
    """Return the rule of decoding for each space: learned ones take whole images, resized."""
    tiled = [space for space in spaces if space.name not in LEARNED]
    tiles = settings.tiles
    if tiles is None:
        tiles = usual_tiles(units, MANIFOLD_REALS, tiled[0].size) if tiled else 0
    elif tiles and not tiled:
        raise ManifptError("--tiles: learned spaces take whole images; leave it out")
    return [
        DecodeRule(space.size, settings.filter_name, tiles=tiles if space in tiled else 0)
        for space in spaces
    ]


def build_manifold(
    inputs: Sequence[str],
    output: str,
    *,
    space: str | Space = "rgb",
    settings: ManifoldSettings = ManifoldSettings(),
    training: TrainingReals | None = None,
    labels: Reading = AS_FOUND,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> ManifoldManifest | ManifoldsManifest:
    """Embed the real images of ``inputs`` and publish the manifold; return its manifest.

    If an input is a benchmark, its reals of the split ``manifold`` are taken; other inputs are
    taken whole, except images that folders or ``labels``, the columns of sources, call generated.
    ``space`` may name several, as ``rgb+freq``: each image is decoded once, each space gets a
    manifold in a folder of its name, and the manifest lists them. It may also be a space itself;
    the options of spaces and the image size are then not used. With ``training``, reals that
    declare no split are left out unless ``compute_artifacts`` would use them for training; images
    of other sources are left out, too.
    """
    output = storage.absolute(output)
    reading = reading_with_split(training and training.split_by, ROWS, labels)
    # Inputs for training hold reals among others; inputs for a manifold alone are all real.
    named = {"labelled": True} if training else {"source": REAL}
    units = plan(inputs, MANIFOLD_REALS, reading=reading, quiet=demand.here, **named)  # type: ignore[arg-type]
    names = space.split("+") if isinstance(space, str) else [space.name]
    pool = pools.pool(demand, uses_gpu=settings.denoiser > 0 or bool(set(names) & set(LEARNED)))
    spaces = _spaces(names, units, settings, pool) if isinstance(space, str) else [space]
    rules = _rules(spaces, units, settings)
    made_of = [reading_rule(rules).card(), settings.shards, *settings.learned()]
    made_of += [training] if training else []
    key = storage.digest([content_key(units), *(s.card() for s in spaces), *made_of])
    kind = "manifold" if len(spaces) == 1 else MANIFOLDS
    options = settings.spaces
    weights = (("--sl-weights", options.sl_weights), ("--ssl-weights", options.ssl_weights))
    read = [*input_places(inputs, output), *((name, uri) for name, uri in weights if uri)]
    with claims.claim(output, kind, key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        folders = [""] if len(spaces) == 1 else [member.name for member in spaces]
        places = [storage.join(output, folder) if folder else output for folder in folders]
        kept = [keep_weights(member, at) for member, at in zip(spaces, places, strict=True)]
        embedding = [compiled(member) for member in kept] if pool.compiled else kept
        records = embed_units(units, embedding, rules, settings.shards, output, pool, training)
        counts = pipeline.totals(records)
        if counts["ok"] == 0:
            claim.abandon()
            raise no_reals(counts)
        members = list(map(_Member, folders, kept, rules))
        facts: InputFacts = {**counts, "inputs": describe(inputs, units, labels)}
        manifest = _publish(claim, members, settings, records, facts, pool)
        clear_embedded(output)
        pipeline.clear_records(output)
        return manifest


class _Member(NamedTuple):
    """A manifold of an output: its folder, "" for the output itself, its space and its rule."""

    folder: str
    space: Space
    rule: DecodeRule


def _publish(
    claim: claims.Claim,
    members: Sequence[_Member],
    settings: ManifoldSettings,
    records: Sequence[ChunkRecord],
    facts: InputFacts,
    pool: pools.Pool,
) -> ManifoldManifest | ManifoldsManifest:
    """Publish the manifold of each space and, if there are several, the folder that holds them."""
    quarantine = [p for p in pipeline.parts(records) if p["folder"] == "quarantine"]
    single, output = len(members) == 1, claim.folder
    manifests: dict[str, ManifoldManifest] = {}
    for folder, space, rule in members:
        place = storage.join(output, folder) if folder else output
        entries = write_shards(place, output, records, settings.shards, pool, space.name)
        draft = drafted(entries, space, rule.card(), settings.metric, facts)
        draft["quarantine"] = quarantine if single else []
        # A denoiser works on pixels; other spaces get none.
        steps = settings.denoiser if space.name == PIXELS else 0
        prepare(draft, place, pool, settings.factory, geometry=settings.geometry, denoiser=steps)
        draft["content_sha256"] = content_sha256(draft)
        manifests[space.name] = manifest = claim.publish(draft, folder, "manifold")
    if single:
        return manifest
    hashes = {name: member["content_sha256"] for name, member in manifests.items()}
    body: ManifoldsManifest = {
        **facts,
        "quarantine": quarantine,
        "members": list(manifests),
        "content_sha256": storage.digest(hashes),
        "reals": sum(m["reals"] for m in manifests.values()) // len(members),
        "duplicates": sum(m["duplicates"] for m in manifests.values()) // len(members),
    }
    return claim.publish(body)


def drafted(
    entries: Sequence[ShardEntry], space: Space, decode: DecodeCard, metric: str, facts: InputFacts
) -> ManifoldManifest:
    """Return the manifest of a manifold whose shards are written; ``prepare`` completes it."""
    return {
        **facts,
        "space": space.card(),
        "weights": weights_entry(space),
        "shape": list(space.shape),
        "decode": decode,
        "metric": metric,
        "reals": sum(entry["reals"] for entry in entries),
        "duplicates": sum(entry["duplicates"] for entry in entries),
        "appended": [],
        "shards": [entry for entry in entries if entry["reals"]],
        "search": {"basis": None, "index": None, "plans": {}, "chosen": "", "measured": []},
        "held_out": {"reals": 0, "distances": []},
        "quarantine": [],
        "content_sha256": "",
    }
