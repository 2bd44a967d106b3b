"""Measurements of speed, always side by side with the usual alternatives."""
