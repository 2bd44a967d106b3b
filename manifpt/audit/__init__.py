"""Image files -> their properties -> whether these give the label away."""
