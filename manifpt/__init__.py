"""ManiFPT on Ray: data manifolds, artifacts, and the generators that left them."""

__version__ = "0.1.0"
