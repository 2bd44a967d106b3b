"""All models of the zoo by their names in recipes; recipes from files."""

import inspect
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from torch import nn

from manifpt.errors import ManifptError
from manifpt.zoo.flow import Flow
from manifpt.zoo.gan import GAN
from manifpt.zoo.recipe import Recipe, option
from manifpt.zoo.score import Diffusion, FlowMatching
from manifpt.zoo.vae import VAE, VAEGAN, VQVAE

# Family and class.
MODELS: dict[str, tuple[str, type[nn.Module]]] = {
    "gan": ("GAN", GAN),
    "vae": ("VAE", VAE),
    "vqvae": ("VAE", VQVAE),
    "vaegan": ("hybrid", VAEGAN),
    "flow": ("flow", Flow),
    "diffusion": ("score", Diffusion),
    "flow_matching": ("score", FlowMatching),
}


def choices(recipe: Recipe) -> dict[str, object]:
    """Return the family of a recipe and all its design choices, defaults included."""
    chosen = _defaults(recipe.model) | recipe.options | recipe.sampling | recipe.data
    return {"family": MODELS[recipe.model][0], "model": recipe.model, **chosen}


def _defaults(model: str) -> dict[str, object]:
    """Return the options of a model and their defaults, without channels and size."""
    known = inspect.signature(MODELS[model][1]).parameters.values()
    return {p.name: p.default for p in known if p.default is not inspect.Parameter.empty}


def build(recipe: Recipe, channels: int, size: int) -> nn.Module:
    """Return the untrained model of a recipe; ``size`` must be a multiple of 4."""
    _, model = MODELS[recipe.model]
    torch.manual_seed(recipe.seed)
    return model(channels, size, **recipe.options, **recipe.sampling)


def read_recipes(given: str) -> list[Recipe]:
    """Return the recipes of a YAML file, or of one that comes with manifpt, by its name.

    The file has ``recipes``, and ``defaults`` for the options that they leave out.
    """
    shipped = files("manifpt.zoo") / "recipes"
    source = shipped / f"{given}.yaml" if "/" not in given and "." not in given else Path(given)
    known = sorted(f.name.removesuffix(".yaml") for f in shipped.iterdir())
    try:
        given_values = yaml.safe_load(source.read_text())
        defaults = given_values.get("defaults", {})
        recipes = [Recipe(**(defaults | value)) for value in given_values["recipes"]]
        for recipe in recipes:
            option("model", recipe.model, MODELS)
            for name in {*recipe.options, *recipe.sampling}:
                option(f"option of {recipe.model}", name, _defaults(recipe.model))
    except (OSError, AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ManifptError(
            f"--recipes {given}: {reason}; give a YAML file of recipes or one of {', '.join(known)}"
        ) from None
    return recipes
