"""Metadata of images, and errors, as text."""

import json

from manifpt.errors import public

# A longer value of metadata is dropped, since every step would hold it in memory.
MOST_TEXT = 2**20


def printable(text: str) -> str:
    """Return a text as valid UTF-8: names of files may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(value: object) -> str | None:
    """Return a metadata value as text: strings as they are, others as JSON.

    The result is None if JSON has no text for it, or more than MOST_TEXT characters.
    """
    text = value
    if value is not None and not isinstance(value, str):
        try:
            text = json.dumps(value, default=str, ensure_ascii=False)
        except (ValueError, OverflowError, RecursionError):
            return None
    return printable(text) if isinstance(text, str) and len(text) <= MOST_TEXT else None


def one_line(error: BaseException) -> str:
    """Return an error's kind and the first line of its text, without the name of a file."""
    lines = public(str(getattr(error, "strerror", None) or error)).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]
