"""`mien doctor`: what works between here and a server, what does not, and what to do about it."""

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import grpc

from mien.channel import ADDRESS_VARIABLE, host_and_port, is_local
from mien.client import Client
from mien.errors import MienError, PermissionDenied, Unauthenticated, from_rpc_error
from mien.status import HEALTH, METADATA, ModelStatus, serving
from mien.tables import timing_table
from mien.timing import StageTiming, stages_of
from mien.v1 import face_pb2 as pb

State = Literal["ok", "warning", "failed", "skipped"]

CLOCK_KEY = "mien-clock"
CREDENTIALS = "credentials"
ROUND_TRIPS = 5
MOST_CLOCK_SECONDS = 5.0
"""By how much clocks may differ. Tokens are checked with 30 seconds of leeway."""
FEW_DAYS = 14
"""So soon before its end a certificate should be renewed; the server's log warns then, too."""
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
SIDE = 320
"""Of the grey photo that is sent, in pixels: the smallest that detectors look at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        check: what: client, address, proxy, tls, health, round trip, server, models, detect, clock; or
            credentials, where the server does not know the caller.
        state: "warning" is what works and should not stay so; "skipped" is what could not be looked at.
        message: how it is.
        advice: what to do about it, or "".
    """

    check: str
    state: State
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files that the client was made with."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class Doctor:
    """Examines a server through a client.

    Args:
        client: of the server; it is left open.
        source: where its address came from, in words.
        encrypted: whether it calls over TLS.
        files: what it was made with for that.

    Attributes:
        timing: the server's stages of a call, once that was made.
    """

    def __init__(
        self, client: Client, *, source: str, encrypted: bool, files: TlsFiles | None = None
    ) -> None:
        self.timing: tuple[StageTiming, ...] = ()
        self._client = client
        self._source = source
        self._encrypted = encrypted
        self._files = files or TlsFiles()

    def findings(self) -> Iterator[Finding]:
        """Looks at one thing after the other. What cannot work without what has failed is left out."""
        yield _this_side()
        address = self._address()
        yield address
        yield from self._proxy()
        if address.state == "failed":
            return
        health, reached = self._health()
        if reached:
            yield self._tls()
        yield health
        if not reached:
            return
        yield self._round_trip()
        server = self._server()
        yield server
        if server.check == CREDENTIALS:  # all else would say the same
            return
        yield from self._models()
        yield from self._detect()

    def _address(self) -> Finding:
        address = self._client.address
        name = f"{address} ({self._source})"
        found = host_and_port(address)
        if found is None:
            path = Path(address.removeprefix("unix:").replace("//", "", 1))
            if address.startswith("unix:") and not path.is_socket():
                return Finding("address", "failed", f"{name}: no socket is there", _START)
            return Finding("address", "ok", name)
        begun = time.monotonic()
        try:
            with socket.create_connection(found, timeout=min(5.0, self._client.timeout)) as raw:
                milliseconds = 1000 * (time.monotonic() - begun)
                peer = raw.getpeername()[0]
        except socket.gaierror as error:
            return Finding(
                "address",
                "failed",
                f"{name}: the name is not known ({error.strerror})",
                "Check the spelling, or give the IP address.",
            )
        except TimeoutError:
            return Finding(
                "address",
                "failed",
                f"{name}: nobody answers",
                "Check the address; a firewall may drop what is sent there.",
            )
        except OSError as error:
            return Finding("address", "failed", f"{name}: {error.strerror or error}", _START)
        return Finding("address", "ok", f"{name}: {peer} connected in {milliseconds:.1f} ms")

    def _proxy(self) -> Iterator[Finding]:
        name = next((name for name in PROXIES if os.environ.get(name)), None)
        if name and not is_local(self._client.address):
            host, _ = host_and_port(self._client.address) or ("the server", 0)
            yield Finding(
                "proxy",
                "warning",
                f"calls go through the proxy of ${name}, unless $no_proxy names the server",
                f"If it does not carry gRPC: export no_proxy={host}",
            )

    def _health(self) -> tuple[Finding, bool]:
        """The finding, and whether a mien server was reached at all."""
        try:
            answer, _ = self._client._look("Check", HEALTH, None)
        except MienError as error:
            check = "tls" if error.reason == "TLS_FAILED" else "health"
            return Finding(check, "failed", error.message), False
        if serving(answer):
            return Finding("health", "ok", "SERVING"), True
        return (
            Finding(
                "health",
                "failed",
                "NOT_SERVING: it is loading its models, some cannot be loaded, or it is stopping",
                "See the models below, and the server's log.",
            ),
            True,
        )

    def _tls(self) -> Finding:
        address = self._client.address
        if not self._encrypted:
            if is_local(address):
                return Finding("tls", "ok", "plain text, within this machine")
            return Finding(
                "tls",
                "warning",
                "plain text: who is on the way can read photos, vectors and keys",
                "Have the operator set --tls-cert, and give --tls or --tls-ca.",
            )
        ends = self._certificate_end()
        if ends is None:
            return Finding("tls", "ok", "encrypted, and the certificate is trusted")
        days = (ends - datetime.now(UTC)).days
        message = (
            f"encrypted, and the certificate is trusted; it ends in {days} days ({ends:%Y-%m-%d})"
        )
        if days < FEW_DAYS:
            return Finding("tls", "warning", message, "Have the operator renew it.")
        return Finding("tls", "ok", message)

    def _certificate_end(self) -> datetime | None:
        """When the server's certificate ends, if Python's own TLS trusts it, too."""
        found = host_and_port(self._client.address)
        if found is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self._files.ca)
            context.set_alpn_protocols(["h2"])
            if self._files.cert is not None:
                context.load_cert_chain(self._files.cert, self._files.key)
            with (
                socket.create_connection(found, timeout=2.0) as raw,
                context.wrap_socket(raw, server_hostname=found[0]) as encrypted,
            ):
                certificate = encrypted.getpeercert() or {}
        except OSError:
            return None
        ends = certificate.get("notAfter")
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(ends)), UTC) if ends else None

    def _server(self) -> Finding:
        def look() -> Finding:
            answer, _ = self._client._look("ServerMetadata", METADATA, None)
            here = importlib.metadata.version("mien")
            if answer.version == here:
                return Finding("server", "ok", f"{answer.name} {answer.version}, as here")
            return Finding(
                "server",
                "warning",
                f"{answer.name} {answer.version}, and {here} here",
                "Upgrade the older one: docs and options may not fit.",
            )

        return _tried("server", look)

    def _models(self) -> Iterator[Finding]:
        models: tuple[ModelStatus, ...] = ()

        def look() -> Finding:
            nonlocal models
            models = self._client.models()
            ready = [f"{each.name} {each.version}" for each in models if each.state == "READY"]
            if ready:
                return Finding("models", "ok", f"ready: {', '.join(ready)}")
            return Finding("models", "failed", "none is ready", "See below, and the server's log.")

        yield _tried("models", look)
        for each in models:
            if each.state != "READY":
                name = each.name if each.version is None else f"{each.name} {each.version}"
                reason = f": {each.reason}" if each.reason else ""
                yield Finding("models", "warning", f"{name} is {each.state}{reason}")

    def _round_trip(self) -> Finding:
        def look() -> Finding:
            took = []
            for _ in range(ROUND_TRIPS):
                begun = time.monotonic()
                self._client._look("Check", HEALTH, None)
                took.append(1000 * (time.monotonic() - begun))
            return Finding(
                "round trip",
                "ok",
                f"{statistics.median(took):.1f} ms without any work (median of {ROUND_TRIPS}, the slowest"
                f" {max(took):.1f})",
            )

        return _tried("round trip", look)

    def _detect(self) -> Iterator[Finding]:
        """A whole call: how long it takes, where, and by which clock."""
        clock = None

        def look() -> Finding:
            nonlocal clock
            begun, wall = time.monotonic(), time.time()
            trailing = dict(self._detect_grey())
            seconds = time.monotonic() - begun
            self.timing = stages_of(trailing.items())
            total = next((s.milliseconds for s in self.timing if s.name == "total"), None)
            if CLOCK_KEY in trailing:
                # The server looked at its clock when it was done, and then its answer was on the way.
                way = (seconds - (total or 0.0) / 1000) / 2
                clock = float(trailing[CLOCK_KEY]) - (wall + seconds - way), way
            within = "" if total is None else f", {total:.1f} of it in the server"
            return Finding("detect", "ok", f"a grey photo took {1000 * seconds:.1f} ms{within}")

        yield _tried("detect", look)
        if clock is not None:
            yield _clock(*clock)

    def _detect_grey(self) -> Any:
        client = self._client
        pixels = pb.Pixels(height=SIDE, width=SIDE, data=bytes([128]) * (3 * SIDE * SIDE))
        try:
            _, call = client._stub.Detect.with_call(
                pb.DetectRequest(image=pb.Image(pixels=pixels)),
                timeout=client.timeout,
                metadata=client._metadata(timing=True),
            )
        except grpc.RpcError as error:
            raise from_rpc_error(
                error, method="Detect", address=client.address, timeout=client.timeout
            ) from error
        return call.trailing_metadata()


_START = "Start a server there (`mien-server serve`), or name another (--address, MIEN_ADDRESS)."


def _this_side() -> Finding:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("mien", "grpcio", "protobuf", "numpy")
    )
    return Finding("client", "ok", f"{versions}, Python {platform.python_version()}")


def _tried(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Unauthenticated as error:
        advice = "Give a key (--api-key-file) or a token (--token-file) that holds."
        return Finding(CREDENTIALS, "failed", error.message, advice)
    except PermissionDenied as error:
        return Finding(
            check, "skipped", error.message, "Ask the operator for the role, if you need it."
        )
    except MienError as error:
        return Finding(check, "failed", str(error))


def _clock(difference: float, error: float) -> Finding:
    message = f"the server's is {difference:+.2f} s from this one's, give or take {error:.2f}"
    if abs(difference) - error <= MOST_CLOCK_SECONDS:
        return Finding("clock", "ok", message)
    return Finding(
        "clock",
        "warning",
        message,
        "Set both by NTP: tokens and certificates hold between two times, and logs cannot be compared.",
    )


def add_doctor_command(
    commands: Any,
    common: argparse.ArgumentParser,
    connect: Callable[[argparse.Namespace], Client],
) -> None:
    """Adds `doctor` to the commands of a parser.

    Args:
        common: options of each.
        connect: makes the client of a command.
    """
    help_text = "Looks for what is wrong between here and a server, and says what to do about it."
    sub = commands.add_parser(
        "doctor",
        parents=[common],
        help=help_text,
        description=f"{help_text} Sends one grey photo. Exit status: 1 if something has failed.",
    )
    sub.set_defaults(run=_run, parser=sub, connect=connect)


def _run(client: Client, arguments: argparse.Namespace) -> int:
    source = "default"
    if arguments.address:
        source = "--address"
    elif os.environ.get(ADDRESS_VARIABLE):
        source = ADDRESS_VARIABLE
    files = TlsFiles(arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    doctor = Doctor(
        client, source=source, encrypted=arguments.tls or files != TlsFiles(), files=files
    )
    found = []
    for finding in doctor.findings():
        found.append(finding)
        if not arguments.json:  # each as it is found: some take seconds
            print(f"{finding.state:<8}{finding.check:<12}{finding.message}", flush=True)
            if finding.advice:
                print(f"{'':<20}-> {finding.advice}")
    if arguments.json:
        timing = [stage.as_dict() for stage in doctor.timing]
        print(json.dumps({"findings": [asdict(each) for each in found], "timing": timing}))
    elif doctor.timing:
        print(f"\n{timing_table(doctor.timing)}")
    return int(any(finding.state == "failed" for finding in found))
