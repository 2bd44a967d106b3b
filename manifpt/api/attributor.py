"""Attributors from Python: load one, and ask it for the sources of images; or train one."""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from manifpt.api.given import (
    Given,
    Images,
    demand_of,
    inputs_of,
    is_dataset,
    mapped,
    of_batch,
    on_ray,
)
from manifpt.api.manifold import Manifold
from manifpt.artifacts.compute import ArtifactRecipe
from manifpt.artifacts.projection import Target, decoding_of
from manifpt.attribution.crawl.registered import opened_model
from manifpt.attribution.crawl.stage import AttributeStage
from manifpt.attribution.model import trained
from manifpt.attribution.model.network import CLOSED_FORM
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.train import AttributorControl, train_attributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.attribution.model.usual import train_usual
from manifpt.attribution.unknown.decision import USUAL, Rule
from manifpt.audit import training_audit
from manifpt.baselines import BASELINES, Baseline
from manifpt.errors import ManifptError
from manifpt.manifold.projector import projection_of

if TYPE_CHECKING:
    import ray.data

QUARANTINED = ("id", "uri", "sha256", "error", "message")


@dataclass(frozen=True, repr=False)
class Attributor(trained.TrainedAttributor):
    """A trained network that names the source of an image, and says how sure it is."""

    manifolds: tuple[str, ...] = ()
    model: Any = field(default=None, repr=False, compare=False)  # keeps MLflow's copy in place

    def __repr__(self) -> str:
        return f"Attributor({self.uri!r}: {', '.join(self.classes)})"

    @classmethod
    def load(cls, uri: str, manifolds: tuple[str, ...] = ()) -> "Attributor":
        """Open an attributor: a folder of ``train_attribution``, or ``models:/NAME@ALIAS``.

        ``manifolds`` say where its manifolds lie now, if they were moved.
        """
        model = contextlib.ExitStack()
        found = model.enter_context(opened_model(uri, manifolds))
        made = cls.open(found.attributor)
        made = cls(made.uri, made.manifest, made.device, tuple(found.manifolds), model)
        _ = made._targets  # manifolds that are gone are an error now
        return made

    @classmethod
    def fit(
        cls,
        images: Mapping[str, Images] | str,
        uri: str,
        *,
        manifold: Manifold | None = None,
        space: str | None = None,
        projector: str = "nearest",
        neighbors: int | None = None,
        audit_images: int = training_audit.IMAGES,
        accept_biased: bool = False,
        **options: Any,
    ) -> "Attributor":
        """Train on images by source, as ``train_attribution`` does; return the attributor.

        Heads on vectors are fitted in closed form, in this process. Networks on maps are trained by
        Ray Train: Ray is started if none runs.

        Args:
            images: {source: images}, see ``Images``; or a folder with a folder for each source. The
                source of real ones is ``real``. 70 % train and 10 % validate, by their content.
            uri: a folder for the attributor, local or remote.
            manifold: a saved manifold, see ``Manifold.save``; the attributor works on artifacts.
            space: used without a manifold: ``image``, ``residual`` or a published baseline such as
                ``durall20``. Without a manifold and a space, the usual attributor is trained.
            projector: the rule for x*, as in ``Manifold.artifacts``.
            neighbors: the number of reals from which x* is computed.
            audit_images: images of each class to audit before the training; 0 for none.
            accept_biased: train although a property of the files, such as the format, reveals the
                class; without it, that is an error.
            options: options of training by name, such as ``steps``, ``backbone`` or ``seed``.

        """
        if manifold is not None and manifold.scratch is not None:
            raise ManifptError(
                "manifold: lies in a temporary folder; take manifold.save(uri), which the "
                "attributor can find again"
            )
        training = _options(options)
        audit = training_audit.Settings(audit_images, accept_biased)
        with tempfile.TemporaryDirectory(prefix="manifpt-") as folder:
            inputs = inputs_of(images, folder)
            if manifold is None and space is None:
                control = AttributorControl(on_ray(inputs, folder), audit=audit)
                train_usual(inputs, uri, training, control=control)
                return cls.load(uri)
            fitted = _in_closed_form(manifold, space) and training.vectors in CLOSED_FORM
            recipe = ArtifactRecipe(
                manifolds=[manifold.uri] if manifold else [],
                plain=[space] if space else [],
                projection=projection_of(projector, neighbors, 0.1),
            )
            demand = demand_of(inputs, folder) if fitted else on_ray(inputs, folder)
            control = AttributorControl(demand, audit=audit)
            train_attributor(inputs, uri, training, recipe=recipe, control=control)
        return cls.load(uri)

    @overload
    def predict(
        self,
        images: Images,
        *,
        sure: float = USUAL.sure,
        false_rejection: float = USUAL.false_rejection,
    ) -> pd.DataFrame: ...

    @overload
    def predict(
        self,
        images: "ray.data.Dataset",
        *,
        sure: float = USUAL.sure,
        false_rejection: float = USUAL.false_rejection,
    ) -> "ray.data.Dataset": ...

    def predict(
        self,
        images: Any,
        *,
        sure: float = USUAL.sure,
        false_rejection: float = USUAL.false_rejection,
    ) -> Any:
        """Return a row an image, in order, with the columns of the table of ``attribute``.

        ``prediction`` is the likeliest source, ``probability`` how likely it is, and ``decision``
        is generator, real, unknown or unsure. An image that can't be decoded has ``status``
        quarantined, and an ``error``.

        Args:
            images: see ``Images``; or a dataset of Ray Data with a column ``image``, for which a
                dataset with the columns of attributions in its place is returned.
            sure: the least probability of an answer.
            false_rejection: the share of images of known sources that may be called unknown.

        """
        rule = Rule(sure, false_rejection)
        if is_dataset(images):
            return mapped(
                images, _Predict, self.uri, self._targets, rule, _RegistryCopy(self.model)
            )
        self._here.stage.rule = rule
        return self._here.table(Given.of(images)).to_pandas()

    @cached_property
    def _targets(self) -> list[Target]:
        """The spaces and projections of the images, the same as in training."""
        return list(trained_targets(self, self.manifolds).values())

    @cached_property
    def _here(self) -> "_Predict":
        """The predictor of this process; it reads the network and the manifolds once."""
        return _Predict(self.uri, self._targets, USUAL)


@dataclass(frozen=True)
class _RegistryCopy:
    """Keeps MLflow's copy of a model in place as long as a dataset of Ray Data may need it.

    The dataset holds it in the calling process; it is sent to no other one.
    """

    model: Any = None

    def __reduce__(self) -> tuple[type["_RegistryCopy"], tuple[()]]:
        return _RegistryCopy, ()


class _Predict:
    """Images -> attributions, in one process."""

    def __init__(
        self, uri: str, targets: list[Target], rule: Rule, copy: _RegistryCopy | None = None
    ) -> None:
        projectors = [target.projector_alone() for target in targets]
        self.rule, self.sizes = decoding_of(projectors)
        self.stage = AttributeStage(uri, projectors, rule=rule)
        self.copy = copy

    def table(self, given: Given) -> pa.Table:
        """Return the rows of images, in order, those that can't be decoded among them."""
        parts = [self._part(table) for table in given.tables(self.rule, self.sizes)]
        return pa.concat_tables(parts, promote_options="default")

    def _part(self, table: pa.Table) -> pa.Table:
        bad = pc.is_valid(table["error"]).to_numpy()
        good = table.filter(pa.array(~bad)).drop_columns(["error", "message"])
        broken = table.filter(pa.array(bad)).select(list(QUARANTINED))
        broken = broken.append_column("status", pa.array(["quarantined"] * len(broken)))
        if not good.num_rows:
            return broken
        found = self.stage(good).tables["attributions"]
        both = pa.concat_tables([found, broken], promote_options="default")
        order = np.argsort(np.argsort(bad, kind="stable"))
        return both.take(pa.array(order))

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Return a batch of a dataset with attributions in place of its images."""
        given, rest = of_batch(batch)
        table = self.table(given)
        for name, values in rest.items():
            column = pa.array(list(values))
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, column)
            else:
                table = table.append_column(name, column)
        return table


def _options(options: Mapping[str, Any]) -> TrainingRecipe:
    """Return options of training by name; raise for a name that is no option."""
    names = [one.name for one in fields(TrainingRecipe)]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ManifptError(f"{unknown[0]}: no option of training; choose of {', '.join(names)}")
    return TrainingRecipe(**options)


def _in_closed_form(manifold: Manifold | None, space: str | None) -> bool:
    """Tell whether the inputs of the training are vectors, not maps."""
    vectors = manifold is None or len(manifold.manifest["shape"]) == 1
    described = space in BASELINES and len(Baseline(64, str(space)).shape) == 1
    return vectors and (space in {None, "residual"} or described)
