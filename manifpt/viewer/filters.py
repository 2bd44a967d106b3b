"""The choices of the table of rows, from the query of an address, and back."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from urllib.parse import urlencode

import pyarrow.compute as pc

from manifpt.viewer.scan import AddressError

# Orders of the table, and the columns that they sort by; a stranger image has a greater score.
ORDERS = {
    "input": ("in the order of the input", None, False),
    "surest": ("most probable first", "probability", True),
    "least_sure": ("least probable first", "probability", False),
    "strangest": ("strangest first", "unknown_score", True),
    "least_strange": ("least strange first", "unknown_score", False),
}
# Bounds of numbers: the column, and whether the bound is the least value that is shown.
BOUNDS = {
    "probability_min": ("probability", True),
    "probability_max": ("probability", False),
    "score_min": ("unknown_score", True),
    "score_max": ("unknown_score", False),
    "p_min": ("unknown_p", True),
    "p_max": ("unknown_p", False),
}
# The folder in an id, in place of a column of groups.
FOLDER_OF_ID = "~folder"


@dataclass(frozen=True)
class Filters:
    """The filters of the table of rows; an empty text is no filter. Numbers stay as typed.

    ``text`` is a part of an id. ``group`` is a site, an account or an album, see ``--group-by``.
    ``cluster`` is the id of an image: it and its copies are shown, exact and near.
    """

    decision: str = ""
    prediction: str = ""
    probability_min: str = ""
    probability_max: str = ""
    score_min: str = ""
    score_max: str = ""
    p_min: str = ""
    p_max: str = ""
    text: str = ""
    group: str = ""
    cluster: str = ""
    order: str = "input"

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> "Filters":
        """Return the filters in the query of an address; raise a line for a wrong one."""
        names = [field.name for field in fields(cls)]
        found = cls(**{name: given[name] for name in names if given.get(name)})
        if found.order not in ORDERS:
            raise AddressError(
                f"order={found.order[:40]}: unknown; give one of {', '.join(ORDERS)}"
            )
        for name in BOUNDS:
            found.bound(name)
        return found

    def bound(self, name: str) -> float | None:
        """Return a bound as a number; None if it is not given."""
        text: str = getattr(self, name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise AddressError(f"{name}={text[:40]}: is no number; give one such as 0.5")
        return value

    def address(self, **changed: object) -> str:
        """Return the query of the address of these filters, with some of them changed.

        >>> Filters(decision="real", text="a&b").address(order="surest")
        'decision=real&text=a%26b&order=surest'
        """
        values = {**asdict(self), **changed}
        default = asdict(Filters())
        return urlencode({n: v for n, v in values.items() if v != default.get(n, "")})

    def conditions(self, group_by: str | None) -> dict[str, pc.Expression]:
        """Return an expression for each column of the filters, without ``cluster``.

        ``group_by`` is the column of groups, or FOLDER_OF_ID.
        """
        found: dict[str, pc.Expression] = {}

        def add(column: str, condition: pc.Expression) -> None:
            found[column] = found[column] & condition if column in found else condition

        for name in ("decision", "prediction"):
            if getattr(self, name):
                add(name, pc.field(name) == getattr(self, name))
        for name, (column, least) in BOUNDS.items():
            value = self.bound(name)
            if value is not None:
                add(column, pc.field(column) >= value if least else pc.field(column) <= value)
        if self.text:
            add("id", pc.match_substring(pc.field("id"), self.text))
        if self.group and group_by is None:
            raise AddressError(f"group={self.group[:40]}: this output has no groups; leave it out")
        if self.group and group_by == FOLDER_OF_ID:
            add("id", in_folder(self.group))
        elif self.group:
            add(str(group_by), pc.field(str(group_by)) == self.group)
        return found


def in_folder(folder: str) -> pc.Expression:
    """Return the expression of ids directly in a folder, as ``--group-by folder`` groups them.

    "0" is the character after "/". Ids of the folder are therefore between two texts, and files
    with other ids are not read.
    """
    id = pc.field("id")
    if folder == ".":
        return pc.count_substring(id, "/") == 0
    inside = (id >= f"{folder}/") & (id < f"{folder}0")
    return inside & (pc.count_substring(id, "/") == folder.count("/") + 1)
