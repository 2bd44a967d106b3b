"""Generators small enough to train on a laptop: GAN, VAE, flow, score; and benchmarks of them."""
