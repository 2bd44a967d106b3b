"""The one exception that a job turns into a line and an exit code."""


class ManifptError(Exception):
    """Bad input or an unusable environment; the message is one line and names the remedy."""
