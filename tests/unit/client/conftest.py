"""A scripted peer: a real gRPC server on loopback that answers what a test tells it to."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status
from PIL import Image

import mien
from mien import cli
from mien.v1 import face_pb2 as pb
from mien.v1.face_pb2_grpc import FaceServiceServicer, add_FaceServiceServicer_to_server

IDENTITY = pb.ModelIdentity(name="sface", version=2, fingerprint="0123456789abcdef")
DETECTOR = pb.ModelIdentity(name="retinaface", version=1, fingerprint="fedcba9876543210")
VALUES = (0.6, -0.8, 0.0, 0.0)
Act = Callable[[Any, Any], Any]
Run = Callable[..., tuple[int, str, str]]


def face(*, embedding: bool = False, crop: bool = False) -> pb.Face:
    message = pb.Face()
    if not crop:
        message.score = 0.97
        message.box.CopyFrom(pb.Box(x1=10.5, y1=20.25, x2=60, y2=90))
        message.box_normalized.CopyFrom(pb.Box(x1=0.105, y1=0.2025, x2=0.6, y2=0.9))
        points = {
            name: pb.Point(x=11 + i, y=21 + i)
            for i, name in enumerate(("left_eye", "right_eye", "nose", "left_mouth", "right_mouth"))
        }
        message.landmarks.CopyFrom(pb.Landmarks(**points))
    if embedding:
        message.embedding.CopyFrom(pb.Embedding(values=VALUES, norm=9.5, model=IDENTITY))
    return message


def analyzed() -> pb.AnalyzedFace:
    """A face of which analysers of all kinds say something."""
    models = [
        pb.ModelIdentity(name=name, version=1, fingerprint="00112233aabbccdd")
        for name in ("mood", "live", "age", "corners")
    ]
    mood, live, age, corners = (pb.Analysis(model=model) for model in models)
    for label, probability in (("happy", 0.75), ("sad", 0.25)):
        mood.classification.labels.add(label=label, probability=probability)
    live.score = 0.1
    age.number.value, age.number.unit = 41.5, "years"
    for x, y in ((1.5, 2), (3, 4)):
        corners.points.points.add(x=x, y=y)
    quality = pb.FaceQuality(
        sharpness=0.2, brightness=0.5, contrast=0.1, size=49.5, yaw=-12.5, overall=0.75
    )
    return pb.AnalyzedFace(face=face(), quality=quality, analyses=[mood, live, age, corners])


@dataclass
class Received:
    """One call as the peer saw it."""

    method: str
    request: Any
    metadata: dict[str, str]
    seconds_left: float


@dataclass
class Peer(FaceServiceServicer):
    """Answers each call by the next act of the script, and well once the script is over."""

    address: str = "127.0.0.1:0"
    received: list[Received] = field(default_factory=list)
    script: deque[Act] = field(default_factory=deque)
    credentials: grpc.ServerCredentials | None = None
    services: list[Callable[[grpc.Server], None]] = field(default_factory=list)
    """What adds further services, at the start."""

    def start(self) -> None:
        """Serves at `address`; port 0 becomes a free one, and a later start takes it again."""
        limit = ("grpc.max_receive_message_length", 32 * 1024 * 1024)
        self.server = grpc.server(ThreadPoolExecutor(8), options=[limit])
        add_FaceServiceServicer_to_server(self, self.server)
        for add in self.services:
            add(self.server)
        port = (
            self.server.add_insecure_port(self.address)
            if self.credentials is None
            else self.server.add_secure_port(self.address, self.credentials)
        )
        self.address = f"127.0.0.1:{port}"
        self.server.start()

    def stop(self) -> None:
        self.server.stop(grace=None).wait()

    def refuses(self, code: grpc.StatusCode, message: str, *details: Any, times: int = 1) -> None:
        """The next calls fail with a `google.rpc.Status` that carries `details`."""

        def act(request: Any, context: Any) -> Any:
            packed = []
            for detail in details:
                packed.append(any_pb2.Any())
                packed[-1].Pack(detail)
            status = status_pb2.Status(code=code.value[0], message=message, details=packed)
            context.abort_with_status(rpc_status.to_status(status))

        self.script.extend([act] * times)

    def aborts(self, code: grpc.StatusCode, text: str, metadata: Any = ()) -> None:
        """The next call fails as a server that knows nothing of mien would make it fail."""

        def act(request: Any, context: Any) -> Any:
            context.set_trailing_metadata(metadata)
            context.abort(code, text)

        self.script.append(act)

    def holds(self, until: threading.Event) -> threading.Event:
        """The next call is not answered before the event; returns one for when it has come in."""
        entered = threading.Event()

        def act(request: Any, context: Any) -> Any:
            entered.set()
            until.wait(30)
            return pb.DetectResponse(detector=DETECTOR)

        self.script.append(act)
        return entered

    def Detect(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        return self._answer("Detect", request, context)

    def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        return self._answer("Embed", request, context)

    def Verify(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        return self._answer("Verify", request, context)

    def Analyze(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        return self._answer("Analyze", request, context)

    def _answer(self, method: str, request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        self.received.append(Received(method, request, metadata, context.time_remaining()))
        if metadata.get("mien-timing") == "1":
            context.set_trailing_metadata(
                (("server-timing", "decode;dur=3.1, detect.compute;dur=9.5;batch=4"),)
            )
        act = self.script.popleft() if self.script else WELL[method]
        return act(request, context)


WELL: dict[str, Act] = {
    "Detect": lambda request, context: pb.DetectResponse(
        faces=[face(), face()], detector=DETECTOR, image_width=100, image_height=100
    ),
    "Embed": lambda request, context: (
        pb.EmbedResponse(
            faces=[face(embedding=True, crop=True)],
            embedder=IDENTITY,
            image_width=112,
            image_height=112,
        )
        if request.image.WhichOneof("source") == "aligned_face"
        else pb.EmbedResponse(
            faces=[face(embedding=True)],
            embedder=IDENTITY,
            detector=DETECTOR,
            image_width=100,
            image_height=100,
        )
    ),
    "Analyze": lambda request, context: pb.AnalyzeResponse(
        faces=[analyzed()], detector=DETECTOR, image_width=100, image_height=100
    ),
    "Verify": lambda request, context: pb.VerifyResponse(
        similarity=0.61,
        threshold=request.threshold if request.HasField("threshold") else 0.363,
        threshold_source=(
            pb.THRESHOLD_SOURCE_REQUEST
            if request.HasField("threshold")
            else pb.THRESHOLD_SOURCE_MODEL
        ),
        matched=not request.HasField("threshold") or request.threshold <= 0.61,
        face_a=face(embedding=True),
        face_b=face(embedding=True),
        detector=DETECTOR,
        embedder=IDENTITY,
    ),
}


@pytest.fixture
def peer() -> Iterator[Peer]:
    scripted = Peer()
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Who signs certificates that nobody else trusts."""
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authority's own certificate."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def tls_peer(authority: trustme.CA) -> Iterator[Peer]:
    """A peer that speaks TLS alone, with a certificate that the authority has signed."""
    signed = authority.issue_cert("127.0.0.1")
    chain = b"".join(blob.bytes() for blob in signed.cert_chain_pems)
    pair = signed.private_key_pem.bytes(), chain
    scripted = Peer(credentials=grpc.ssl_server_credentials([pair]))
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture(params=["Client", "AsyncClient"])
def call(request: pytest.FixtureRequest, peer: Peer) -> Callable[..., Any]:
    """`call("detect", image, option=...)` on the peer, by either client; both must pass."""

    def call(
        method: str, *args: Any, address: str = "", credentials: Any = None, **options: Any
    ) -> Any:
        address = address or peer.address
        if request.param == "Client":
            with mien.Client(address, credentials=credentials) as client:
                return getattr(client, method)(*args, **options)

        async def once() -> Any:
            async with mien.AsyncClient(address, credentials=credentials) as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(once())

    return call


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (100, 100), "gray").save(path)
    return path


@pytest.fixture
def run(peer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("detect", path)`: the exit status, standard output and standard error."""
    monkeypatch.setenv("MIEN_ADDRESS", peer.address)

    def run(*arguments: object) -> tuple[int, str, str]:
        status: Any
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        output, errors = capsys.readouterr()
        return status, output, errors

    return run
