"""Outputs appear whole or not at all: a folder is an output when it has a manifest."""

from manifpt.outputs.layouts import MANIFEST
from manifpt.outputs.manifests import files_of, read, require

__all__ = [
    "MANIFEST",
    "files_of",
    "read",
    "require",
]
