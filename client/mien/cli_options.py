"""What the options of the command `mien` may be, and what it says of those that are not."""

import argparse
from pathlib import Path

import grpc

from mien.channel import MAX_TIMEOUT, checked_timeout
from mien.errors import InvalidRequest

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def seconds(text: str) -> float:
    """A duration, above 0 and up to a year."""
    try:
        return checked_timeout(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds above 0, up to {MAX_TIMEOUT}"
        ) from None


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def picture(text: str) -> Path:
    """Where to write a picture; its suffix says of which kind."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} ends in none of {', '.join(PICTURES)}")
    return path


def credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """What --tls and --tls-ca ask for; None is plain text.

    Raises:
        OSError: the file of --tls-ca cannot be read.
        InvalidRequest: it holds no certificate.
    """
    if arguments.tls_ca is None:
        return grpc.ssl_channel_credentials() if arguments.tls else None
    certificates = arguments.tls_ca.read_bytes()
    # gRPC would take its own for those of an empty file.
    if b"-----BEGIN CERTIFICATE-----" not in certificates:
        raise InvalidRequest(
            f"{arguments.tls_ca} holds no certificate in PEM", reason="FILE_ERROR", field="--tls-ca"
        )
    return grpc.ssl_channel_credentials(certificates)
