"""The one exception that a job turns into a line and an exit code."""

import re


def public(text: str) -> str:
    """Return a text without the credentials that URIs in it may hold: user, password, query.

    A ``?`` that is a pattern's stays.
    """
    if "://" not in text:
        return text
    text = re.sub(r"(\w://)[^/@\s'\"]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"=]*=[^\s'\"]*", r"\1", text)


class ManifptError(Exception):
    """Bad input or an unusable environment; the message is one line and names the remedy.

    URIs in the message lose their credentials, wherever it goes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(public(message))


class DamageError(ManifptError):
    """A file is not what its manifest says."""


class MismatchError(ManifptError):
    """A verification found a difference: the job did its work and says no, with exit code 1."""
