"""The usual attributor: several heads, trained if the user names neither a space nor a manifold.

Its heads look at the pixels, at their high-pass residuals, at local statistics (the space
``residual``), and, if there are enough real images, at the difference to the output of a denoiser
that has learned the manifold of the reals. No single head is the best on all images, so their
weights are fitted on validation images.

Images of the web were compressed, resized or cropped after they were generated. Therefore half of
the training and validation images are degraded copies of the others.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from manifpt import storage
from manifpt.artifacts.compute import ArtifactRecipe
from manifpt.attribution.model.attributor_format import AttributorManifest
from manifpt.attribution.model.train import (
    AttributorControl,
    StoppedTraining,
    train_attributor,
)
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.errors import ManifptError
from manifpt.images import plan
from manifpt.images.degrade import KINDS, StrengthRange
from manifpt.images.degraded_copies import Augmentation
from manifpt.images.places import input_places
from manifpt.images.sources import AS_FOUND, MANIFOLD_REALS, REAL, Reading
from manifpt.manifold.build import ManifoldSettings, build_manifold
from manifpt.manifold.denoiser import STEPS
from manifpt.manifold.embed import TrainingReals
from manifpt.manifold.projector import Projection
from manifpt.outputs import claims

PLAIN = ("image", "residual")
DEGRADED = Augmentation(tuple(map(StrengthRange.parse, KINDS)))


def train_usual(
    inputs: Sequence[str],
    output: str,
    options: TrainingRecipe,
    *,
    recipe: ArtifactRecipe = ArtifactRecipe(augmentation=DEGRADED),
    sources: Sequence[str] = (),
    denoiser_steps: int = STEPS,
    control: AttributorControl = AttributorControl(),
) -> AttributorManifest | StoppedTraining:
    """Train on images by source; return the manifest.

    The manifold is that of a benchmark's own reals, else of the training images of ``real``; it
    stays in ``output``/manifold. ``recipe`` has all options of the artifacts except their spaces
    and their projection. The other arguments are those of ``train_attributor``.
    """
    output = storage.absolute(output)
    claims.check_place(output, "attributor", input_places(inputs, output), control.terms)
    verdict = control.audited(inputs, output, sources, recipe.labels)
    place, manifolds = storage.join(output, "manifold"), []
    if has_reals(inputs, recipe.labels):
        settings = ManifoldSettings(
            image_size=recipe.image_size, tiles=recipe.tiles, denoiser=denoiser_steps
        )
        reals = TrainingReals(recipe.split_by)
        made = build_manifold(
            inputs,
            place,
            settings=settings,
            training=reals,
            labels=recipe.labels,
            demand=control.demand,
            terms=control.terms,
        )
        manifolds = [place] if "denoiser" in made else []
    else:
        text = "no path names images as real; the attributor has no denoiser (name one real=...)"
        print(f"--input: {text}", file=sys.stderr)
    recipe = replace(recipe, manifolds=manifolds, plain=PLAIN, projection=Projection("denoiser"))
    if manifolds:  # whose reals have a size and tiles
        recipe = replace(recipe, image_size=None, tiles=None)
    return train_attributor(
        inputs,
        output,
        replace(options, highpass="also"),
        recipe=recipe,
        sources=sources,
        control=replace(control, audit=control.audit.after(verdict)),
    )


def has_reals(inputs: Sequence[str], labels: Reading = AS_FOUND) -> bool:
    """Tell whether images of the source ``real`` are among inputs, as far as their names say."""
    try:
        units = plan(inputs, MANIFOLD_REALS, labelled=True, reading=labels)
    except ManifptError:
        return False
    return any(unit.source == REAL for unit in units)
