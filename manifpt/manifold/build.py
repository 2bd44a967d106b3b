"""Build a manifold from real images, and let it grow."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from manifpt import outputs, storage
from manifpt.engine import pipeline, session
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Unit, plan
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
from manifpt.manifold.embed import (
    TrainingReals,
    clear_embedded,
    embed_units,
    remove_shard,
    write_array,
    write_rows,
    write_shards,
)
from manifpt.manifold.prepare import measure_held_out, prepare, write_all_keys
from manifpt.manifold.search import SearchPlan
from manifpt.manifold.shard import ROWS
from manifpt.manifold.stored import MANIFOLDS, StoredManifold
from manifpt.nets.device import precision_of
from manifpt.outputs import claims
from manifpt.spaces import Space, SpaceSettings, make_space
from manifpt.spaces.learned import compiled, keep_weights, weights_entry
from manifpt.spaces.space import LEARNED, largest_size
from manifpt.tracking import versions

ATTEMPTS = 20
PIXELS = "rgb"  # the space whose vectors a denoiser takes


def content_sha256(draft: dict[str, Any]) -> str:
    """Return the hash of a manifold: of its space, its decode rule, its metric and its reals.

    A covariance is part of the metric: reals that were appended later are not in it.
    """
    total = sum(int(entry["content"], 16) for entry in draft["shards"]) % 2**256
    whitening = [draft["whitening"]["sha256"]] if "whitening" in draft else []
    settings = [draft["space"], draft["decode"], draft["metric"], *whitening]
    return storage.digest([*settings, f"{total:064x}"])


def _nothing(counts: dict[str, Any]) -> ManifptError:
    reason = counts["by_error"] or "no image of source real and split manifold"
    return ManifptError(
        f"--input: none of {counts['rows_in']} images could be used ({reason}); check the input"
    )


@dataclass(frozen=True)
class ManifoldSettings:
    """What a manifold is besides its reals and its space.

    ``tiles`` is how many native tiles an image larger than the size has at most; 0 resizes it.
    ``factory`` is FAISS's name of an approximate index to have beside exact search; ``geometry``
    is for the Riemannian projector; ``denoiser`` are the steps of its training, 0 for none.
    """

    shards: int = 4
    image_size: int | None = None
    filter_name: str = "bicubic"
    metric: str = "euclidean"
    factory: str | None = None
    geometry: bool = False
    tiles: int | None = None
    denoiser: int = 0

    def learned(self) -> list[Any]:
        """Return what decides all that is learned of the vectors, for keys."""
        # Manifolds of earlier versions had no denoiser.
        denoiser = [self.denoiser] if self.denoiser else []
        return [self.metric, self.factory, self.geometry, *denoiser]


def _spaces(
    names: Sequence[str],
    units: Sequence[Unit],
    options: SpaceSettings,
    image_size: int | None,
    *,
    denoiser: bool,
) -> list[Space]:
    """Return spaces by name, each for images of the size that suits it."""
    if "image" in names:
        raise ManifptError("--space image: has no manifold; give it to compute_artifacts")
    if denoiser and PIXELS not in names:
        raise ManifptError(f"--denoiser: is of pixels, not of {'+'.join(names)}; add --space rgb")
    if len(set(names)) < len(names):
        raise ManifptError(f"--space {'+'.join(names)}: name each space once")
    natural = image_size or natural_size(units, MANIFOLD_REALS)
    sizes = [image_size or min(natural, largest_size(name, options)) for name in names]
    spaces = [make_space(name, size, options) for name, size in zip(names, sizes, strict=True)]
    for space in spaces:
        _ = space.shape  # loads its network: weights that do not fit are an error now
    return spaces


def _rules(
    spaces: Sequence[Space], units: Sequence[Unit], settings: ManifoldSettings
) -> list[DecodeRule]:
    """Return how images are decoded for each space: learned ones take whole images, resized."""
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
    options: SpaceSettings = SpaceSettings(),
    settings: ManifoldSettings = ManifoldSettings(),
    training: TrainingReals | None = None,
    labels: Reading = AS_FOUND,
    demand: session.Demand = session.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> dict[str, Any]:
    """Embed the real images of ``inputs`` and publish the manifold; return its manifest.

    Of a benchmark, the reals of the split ``manifold`` are taken; other inputs are taken whole,
    but for images that folders or ``labels``, the columns of sources, call generated.
    ``space`` may name several, as ``rgb+freq``: each image is decoded once, each space gets a
    manifold in a folder of its name, and the manifest lists them. It may also be a space itself,
    for which the name's ``options`` and the image size are not asked. With ``training``, reals that
    declare no split are left out unless ``compute_artifacts`` would take them for training, and so
    are images of other sources.
    """
    output = storage.absolute(output)
    reading = reading_with_split(training and training.split_by, ROWS, labels)
    # Inputs for training hold reals among others; inputs for a manifold alone are all real.
    named = {"labelled": True} if training else {"source": REAL}
    units = plan(inputs, MANIFOLD_REALS, reading=reading, quiet=demand.here, **named)  # type: ignore[arg-type]
    names = space.split("+") if isinstance(space, str) else [space.name]
    pool = session.pool(demand, uses_gpu=settings.denoiser > 0 or bool(set(names) & set(LEARNED)))
    options = replace(options, precision=precision_of(options.precision, pool))
    spaces = (
        _spaces(names, units, options, settings.image_size, denoiser=bool(settings.denoiser))
        if isinstance(space, str)
        else [space]
    )
    rules = _rules(spaces, units, settings)
    made_of = [reading_rule(rules).card(), settings.shards, *settings.learned()]
    made_of += [training] if training else []
    key = storage.digest([content_key(units), *(s.card() for s in spaces), *made_of])
    kind = "manifold" if len(spaces) == 1 else MANIFOLDS
    given = (("--sl-weights", options.sl_weights), ("--ssl-weights", options.ssl_weights))
    read = [*input_places(inputs, output), *((option, uri) for option, uri in given if uri)]
    with claims.claim(output, kind, key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        single = len(spaces) == 1
        folders = ["" if single else member.name for member in spaces]
        spaces = [
            keep_weights(member, storage.join(output, folder) if folder else output)
            for member, folder in zip(spaces, folders, strict=True)
        ]
        embedding = [compiled(s) for s in spaces] if pool.compiled else spaces
        records = embed_units(units, embedding, rules, settings.shards, output, pool, training)
        counts = pipeline.totals(records)
        if counts["ok"] == 0:
            claim.abandon()
            raise _nothing(counts)
        common = {**counts, "inputs": describe(inputs, units, labels)}
        quarantine = [p for p in pipeline.parts(records) if p["folder"] == "quarantine"]
        members = {}
        for member, rule, folder in zip(spaces, rules, folders, strict=True):
            place = storage.join(output, folder) if folder else output
            draft = _draft(member, rule, settings, records, output, place, pool)
            draft |= {**common, "quarantine": quarantine if single else []}
            members[member.name] = manifest = claim.publish(draft, folder, "manifold")
        if not single:
            manifest = _publish_members(claim, members, {**common, "quarantine": quarantine})
        clear_embedded(output)
        pipeline.clear_records(output)
        return manifest


def _draft(
    space: Space,
    rule: DecodeRule,
    settings: ManifoldSettings,
    records: Sequence[dict[str, Any]],
    scratch: str,
    output: str,
    pool: session.Pool,
) -> dict[str, Any]:
    """Write a manifold's shards and all that search needs; return most of its manifest."""
    entries = write_shards(output, scratch, records, settings.shards, pool, space.name)
    draft = {
        "space": space.card(),
        "weights": weights_entry(space),
        "shape": list(space.shape),
        "decode": rule.card(),
        "metric": settings.metric,
        "reals": sum(entry["reals"] for entry in entries),
        "duplicates": sum(entry["duplicates"] for entry in entries),
        "appended": [],
        "shards": [entry for entry in entries if entry["reals"]],
        "versions": versions(),
    }
    # A denoiser works on pixels; other spaces get none.
    denoiser = settings.denoiser if space.name == PIXELS else 0
    prepare(draft, output, pool, settings.factory, geometry=settings.geometry, denoiser=denoiser)
    draft["content_sha256"] = content_sha256(draft)
    return draft


def _publish_members(
    claim: claims.Claim, members: dict[str, dict[str, Any]], body: dict[str, Any]
) -> dict[str, Any]:
    """Publish the folder that holds one manifold a space."""
    hashes = {name: manifest["content_sha256"] for name, manifest in members.items()}
    counts = {
        name: sum(m[name] for m in members.values()) // len(members)
        for name in ("reals", "duplicates")
    }
    body |= {"members": list(members), "content_sha256": storage.digest(hashes), **counts}
    return claim.publish(body)


def _update(
    manifold: StoredManifold, change: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> dict[str, Any]:
    """Publish what ``change`` makes of the manifest, again if another did so in between.

    ``change`` gets the manifest as it is and returns the new one, or None if nothing is to do.
    """
    uri = storage.join(manifold.uri, outputs.MANIFEST)
    for _ in range(ATTEMPTS):
        data, token = storage.read_versioned(uri)
        changed = change(json.loads(data))
        if changed is None:
            return dict(json.loads(data))
        changed["content_sha256"] = content_sha256(changed)
        if storage.replace(uri, storage.json_bytes(changed), token):
            return changed
    raise ManifptError(f"{uri}: changed {ATTEMPTS} times while this job worked; start it again")


def append_to_manifold(
    inputs: Sequence[str],
    output: str,
    *,
    labels: Reading = AS_FOUND,
    demand: session.Demand = session.ANY,
) -> dict[str, Any]:
    """Add the reals of ``inputs`` as new shards; return the manifest.

    The old shards are neither read again nor changed, but for the distances of held-out reals;
    a covariance stays that of the first reals.
    Reals that are there already are counted and left out; the same call again does nothing.
    """
    manifold = StoredManifold.open(output)
    units = plan(inputs, MANIFOLD_REALS, source="real", reading=labels)
    key = storage.digest([content_key(units)])
    if key in [done["key"] for done in manifold.manifest["appended"]]:
        return manifold.manifest
    if manifold.manifest["search"]["index"] is not None:
        raise ManifptError(
            f"--append: {output} has the index {manifold.manifest['search']['index']['plan']}, "
            "which would miss the new reals; build the manifold again"
        )
    pool = session.pool(demand, uses_gpu=manifold.space.name in LEARNED)
    scratch = storage.join(manifold.uri, f"_append-{key[:12]}")
    apart = input_places(inputs, manifold.uri)
    claims.check_apart(manifold.uri, apart)
    with claims.claim(scratch, "append", key, apart=apart) as claim:
        shards = len(manifold.manifest["shards"])
        records = embed_units(units, [manifold.space], [manifold.rule], shards, scratch, pool)
        counts = pipeline.totals(records)
        if counts["ok"] == 0:
            claim.abandon()
            raise _nothing(counts)
        done = {"key": key, "inputs": describe(inputs, units, labels), **counts}
        manifest = _update(manifold, partial(_appended, manifold, records, scratch, done, pool))
        claim.abandon()
        return manifest


def _appended(
    manifold: StoredManifold,
    records: Sequence[dict[str, Any]],
    scratch: str,
    done: dict[str, Any],
    pool: session.Pool,
    manifest: dict[str, Any],
) -> dict[str, Any] | None:
    """Return a manifest with the embedded reals as new shards; None if they are in it already."""
    key = done["key"]
    if key in [earlier["key"] for earlier in manifest["appended"]]:
        return None
    known = [storage.join(manifold.uri, s["rows"]["path"]) for s in manifest["shards"]]
    shards, name = len(manifold.manifest["shards"]), manifold.space.name
    prefix = f"shard-{key[:12]}"
    new = write_shards(manifold.uri, scratch, records, shards, pool, name, prefix, known)
    nonempty = [entry for entry in new if entry["reals"]]
    draft = {**manifest, "shards": [*manifest["shards"], *nonempty]}
    draft["reals"] += sum(entry["reals"] for entry in nonempty)
    duplicates = sum(entry["duplicates"] for entry in new)
    draft["appended"] = [*manifest["appended"], {**done, "duplicates": duplicates}]
    moved = _moved(records, scratch, manifold.uri, key)
    draft["quarantine"] = [*manifest["quarantine"], *moved]
    last = len(draft["shards"])
    write_all_keys(draft, manifold.uri, pool, range(len(manifest["shards"]), last))
    measure_held_out(draft, manifold.uri, pool)
    return draft


def _moved(
    records: Sequence[dict[str, Any]], scratch: str, output: str, key: str
) -> list[dict[str, Any]]:
    """Copy the quarantine of an append to the manifold's; return its parts."""
    moved = []
    for part in pipeline.parts(records):
        path = f"quarantine/{key[:8]}-{storage.base_name(part['path'])}"
        data = storage.read_bytes(storage.join(scratch, part["path"]))
        moved.append(
            {**part, "path": path, **storage.write_bytes(storage.join(output, path), data)}
        )
    return moved


def merge_groups(sizes: Sequence[int], target: int) -> list[list[int]]:
    """Return which shards to merge: runs of those below ``target`` reals, up to about as many."""
    out: list[list[int]] = []
    total = target
    for number, size in enumerate(sizes):
        if size >= target:
            continue
        if total + size > target:
            out.append([])
            total = 0
        out[-1].append(number)
        total += size
    return [group for group in out if len(group) > 1]


def merge_shards(manifold: StoredManifold, output: str, numbers: Sequence[int], folder: str) -> Any:
    """Write some shards as one; return its entry."""
    entries = [manifold.manifest["shards"][number] for number in numbers]
    tables = [storage.read_parquet(storage.join(output, e["rows"]["path"])) for e in entries]
    plan = SearchPlan("bounds") if manifold.basis is not None else SearchPlan()
    shard = manifold.read(plan, numbers)
    common = [name for name in ROWS if all(name in table.column_names for table in tables)]
    rows = pa.concat_tables([table.select(common) for table in tables])
    merged = write_rows(output, folder, rows, shard.vectors)
    merged["duplicates"] = sum(entry["duplicates"] for entry in entries)
    if shard.keys is not None:
        merged["keys"] = write_array(output, f"{folder}/keys.npy", shard.keys)
    return merged


def _name(shards: Sequence[dict[str, Any]], group: Sequence[int]) -> str:
    """Return a name of the reals in some shards: other reals are never written under it."""
    return storage.digest([shards[number]["content"] for number in group])[:12]


def compact_manifold(
    output: str, shards: int, *, demand: session.Demand = session.ANY
) -> dict[str, Any]:
    """Merge small shards until there are about ``shards``; return the manifest.

    The manifold's hash stays. The files of the merged shards stay, too, until the next compaction,
    for those who read them now.
    """
    manifold = StoredManifold.open(output)
    pool = session.pool(demand, uses_gpu=False)

    def change(manifest: dict[str, Any]) -> dict[str, Any] | None:
        import ray

        now = StoredManifold(manifold.uri, manifest)
        old = manifest["shards"]
        merging = merge_groups([entry["reals"] for entry in old], -(-manifest["reals"] // shards))
        if not merging:
            return None
        pool.wait(len(merging))
        merge = ray.remote(num_cpus=pool.num_cpus)(merge_shards)
        new = ray.get(
            [
                merge.remote(now, manifold.uri, group, f"shard-{_name(old, group)}-{n:05d}")
                for n, group in enumerate(merging)
            ]
        )
        gone = {n for group in merging for n in group}
        untouched = [entry for n, entry in enumerate(old) if n not in gone]
        for folder in manifest.get("obsolete", []):
            remove_shard(storage.join(manifold.uri, folder))
        obsolete = [old[n]["rows"]["path"].partition("/")[0] for n in sorted(gone)]
        counts = {"from": len(old), "to": len(untouched) + len(new)}
        compacted = [*manifest.get("compacted", []), counts]
        return {**manifest, "shards": untouched + new, "obsolete": obsolete, "compacted": compacted}

    return _update(manifold, change)
