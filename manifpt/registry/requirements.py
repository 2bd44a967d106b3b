"""The pip requirements of a served attributor, of the versions that it was logged with."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from manifpt.nets import encoders

# All packages that the model's code imports, without Ray: a served model runs in one process.
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
    "adlfs",
    "boto3",  # MLflow reads artifacts on S3 with it
    "threadpoolctl",
)


def pinned(backbones: Sequence[str] = ()) -> list[str]:
    """Return the installed packages as NAME==VERSION, without the builder's suffix (+cpu).

    ``backbones`` are the networks of its spaces, which may be of other libraries.
    """
    libraries = filter(None, map(encoders.library_of, backbones))
    packages = sorted({encoders.PACKAGES[library] for library, _ in libraries})
    found = []
    for name in (*DISTRIBUTIONS, *packages, *(["safetensors"] if packages else [])):
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return found
