"""Outputs appear whole or not at all: a folder is one when its manifest is there."""

from manifpt.outputs.layouts import MANIFEST
from manifpt.outputs.manifests import files_of, read, require

__all__ = [
    "MANIFEST",
    "files_of",
    "read",
    "require",
]
