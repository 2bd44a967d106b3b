"""The one exception that a job turns into a line and an exit code."""

from manifpt.redaction import public as public


class ManifptError(Exception):
    """Bad input or an unusable environment; the message is one line and names the remedy.

    URIs in the message are stored without their credentials. ``exit_code`` is that of the job.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(public(message))


class DamageError(ManifptError):
    """A file differs from its manifest."""


class MismatchError(ManifptError):
    """A verification found a difference: the job did its work and says no, with exit code 1."""

    exit_code = 1


class FailedAuditError(ManifptError):
    """An audit failed: the images' files reveal their classes, so they are no fair data."""

    exit_code = 3
