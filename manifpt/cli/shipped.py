"""Files of the project: a checkout has them at its top, an installed package inside."""

from importlib import resources
from pathlib import Path

# In a checkout, links to benchmarks/ and to the files of tuning/.
FOLDER = "data"


def shipped(path: str) -> str:
    """Return a path such as ``benchmarks/gm-fashionmnist``, or the package's own if it is not here.

    A path that is in neither place is returned as it is.
    """
    inside = Path(str(resources.files("manifpt"))) / FOLDER / path
    return path if Path(path).exists() or not inside.exists() else str(inside)
