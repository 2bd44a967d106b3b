"""Outputs appear whole or not at all: a folder is one when its manifest is there."""

from manifpt.outputs.layouts import MANIFEST
from manifpt.outputs.manifests import read, require

__all__ = [
    "MANIFEST",
    "read",
    "require",
]
