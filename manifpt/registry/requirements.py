"""What a served attributor needs, as pip requirements of the versions that it was logged with."""

from importlib.metadata import PackageNotFoundError, version

# All that the model's code imports. Ray is not: a served model runs in its own process alone.
DISTRIBUTIONS = (
    "mlflow",
    "torch",
    "torchvision",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "fsspec",
    "s3fs",
    "gcsfs",
    "boto3",  # MLflow reads artifacts on S3 with it
    "threadpoolctl",
)


def pinned() -> list[str]:
    """Return the installed ones as NAME==VERSION, without the builder's own suffix (+cpu)."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return found
