"""A local server of pages for outputs that are too large for one HTML file."""
