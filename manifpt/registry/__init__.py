"""Finished attributors in MLflow's model registry: the model's files, its card, its version."""
