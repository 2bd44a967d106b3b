"""Metadata of images as text."""

import json


def printable(text: str) -> str:
    """Return a text that is UTF-8 in any case: names of files may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(value: object) -> str | None:
    """Return a metadata value as text: strings as they are, others as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return printable(value)
    return printable(json.dumps(value, default=str, ensure_ascii=False))
