"""Sweeps of embedding spaces and hyperparameters with Ray Tune."""
