"""What can be wrong with weights on their way into a repository, where several modules here say so.

`InstallError`, `ImportRefused` and `QuantiseError` stand beside the one function that raises each.
"""

from mien_server.errors import OperatorError

AGAIN = "copy or download it again, and compare its size and sha256 with the publisher's"
"""What to do about a damaged file."""


class FetchError(OperatorError):
    """A file could not be had, or is not the one that was asked for; nothing of it is used."""


class WeightsError(OperatorError):
    """Weights cannot be read, or are not what they should be."""
