"""Why a server cannot be reached, as far as gRPC's words and a look at its port tell."""

import socket
import ssl
from enum import Enum

from mien.channel import host_and_port

_PROBE_SECONDS = 1.0


class _Speaks(Enum):
    """What a port turned out to be."""

    TLS = "TLS"
    MUTUAL_TLS = "TLS, to those who show a certificate"


def explanation(text: str, *, address: str, encrypted: bool) -> tuple[str, str]:
    """The reason of the error, and its message.

    May wait for up to some 2 seconds: a server that closes the connection at once is asked whether it
    speaks TLS.

    Args:
        text: what gRPC said.
        address: the server's, as gRPC takes it.
        encrypted: whether it was called over TLS.
    """
    if encrypted and "WRONG_VERSION_NUMBER" in text:
        return "TLS_FAILED", (
            f"the server at {address} does not speak TLS. Call it in plain text (no credentials, no --tls,"
            " --tls-ca or --tls-cert), or give it a certificate (`mien-server serve --tls-cert`)."
        )
    if encrypted and "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("CERTIFICATE_VERIFY_FAILED: ")[2].partition(":")[0]
        return "TLS_FAILED", (
            f"the certificate of the server at {address} is not to be trusted ({why}). Name the authority"
            ' that signed it: credentials=mien.tls_credentials("ca.pem"), or --tls-ca ca.pem.'
        )
    if encrypted and "Hostname Verification" in text:
        return "TLS_FAILED", (
            f"the certificate of the server at {address} is for another name. Call the server by a name that"
            " its certificate has."
        )
    if "Socket closed" in text:
        speaks = _look(address)
        if speaks is _Speaks.MUTUAL_TLS:
            return "TLS_FAILED", (
                f"the server at {address} wants a client certificate that it trusts:"
                ' credentials=mien.tls_credentials("ca.pem", cert="me.pem", key="me.key"), or'
                " --tls-ca, --tls-cert and --tls-key."
            )
        if speaks is _Speaks.TLS and not encrypted:
            return "TLS_FAILED", (
                f"the server at {address} speaks TLS, and was called in plain text. Give"
                " credentials=mien.tls_credentials(), or --tls; where its authority is not a well-known one,"
                ' mien.tls_credentials("ca.pem"), or --tls-ca ca.pem.'
            )
    return "SERVER_UNREACHABLE", (
        f"no mien server can be reached at {address} ({text}). Start one with `mien-server"
        " serve`, or name another as host:port (address, --address or MIEN_ADDRESS)."
    )


def _look(address: str) -> _Speaks | None:
    """What the port speaks, if that is TLS. Sends nothing but a handshake."""
    found = host_and_port(address)
    if found is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is told to whoever this is: the question is only whether it is TLS.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(found, timeout=_PROBE_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=found[0]) as encrypted,
        ):
            # A server of HTTP/2 speaks first, unless it wants to see a certificate.
            return _Speaks.TLS if encrypted.recv(1) else _Speaks.MUTUAL_TLS
    except (OSError, ValueError):
        return None
