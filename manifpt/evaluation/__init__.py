"""The quality of attributions, on images that no step has seen."""
