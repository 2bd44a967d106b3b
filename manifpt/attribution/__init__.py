"""Artifacts -> the generator that made an image: network, training, prediction."""
