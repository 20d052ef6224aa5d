"""FaceService by hand on gRPC's threads: what the OpenVINO and the onnxruntime server have in common.

A thread carries a call from its first byte to its last. Nothing batches: the networks are called with what
one call brings.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np

from bench.peers.by_hand import faces
from bench.peers.by_hand.arrays import CROP, Floats, Pixels
from mien.v1 import face_pb2 as pb
from mien.v1.face_pb2_grpc import FaceServiceServicer, add_FaceServiceServicer_to_server

THREADS = 32
MAX_BYTES = 32 << 20


class Networks(Protocol):
    """A detector for one canvas, and embedders by name."""

    def detect(self, canvas: Pixels) -> tuple[Floats, Floats, Floats]:
        """[1, side, side, 3] RGB to [P, 4], [P, 2] and [P, 10]."""
        ...

    def embed(self, crops: Pixels, name: str) -> Floats:
        """[n, 112, 112, 3] RGB to [n, d]."""
        ...


def to_face(photo: faces.Photo, face: faces.Face, vector: Floats | None = None) -> pb.Face:
    scale = photo.width / photo.pixels.shape[1]
    x1, y1, x2, y2 = (face.box * scale).tolist()
    size = (photo.width, photo.height)
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
    points = zip(names, (face.landmarks * scale).tolist(), strict=True)
    return pb.Face(
        box=pb.Box(x1=x1, y1=y1, x2=x2, y2=y2),
        box_normalized=pb.Box(x1=x1 / size[0], y1=y1 / size[1], x2=x2 / size[0], y2=y2 / size[1]),
        score=face.score,
        landmarks=pb.Landmarks(**{name: pb.Point(x=x, y=y) for name, (x, y) in points}),
        embedding=None if vector is None else to_embedding(vector),
    )


def to_embedding(vector: Floats) -> pb.Embedding:
    norm = float(np.linalg.norm(vector))
    return pb.Embedding(values=vector / norm, norm=norm)


class ByHand(FaceServiceServicer):
    """Detect with every face, Embed with the largest or of a crop, Verify of two photos."""

    def __init__(self, networks: Networks, canvas: int) -> None:
        self.networks, self.canvas = networks, canvas

    def find(self, image: pb.Image) -> tuple[faces.Photo, list[faces.Face]]:
        photo = faces.decode(image.encoded)
        canvas, scale = faces.letterbox(photo, self.canvas)
        return photo, faces.find(*self.networks.detect(canvas[None]), self.canvas, scale)

    def largest(self, image: pb.Image, context: Any) -> pb.Face:
        photo, found = self.find(image)
        if not found:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no face")
        face = max(found, key=faces.area)
        crop = faces.align(photo.pixels, face.landmarks)
        return to_face(photo, face, self.networks.embed(crop[None], "sface")[0])

    def Detect(self, request: pb.DetectRequest, context: Any) -> pb.DetectResponse:  # noqa: N802
        photo, found = self.find(request.image)
        answer = [to_face(photo, face) for face in found]
        return pb.DetectResponse(faces=answer, image_width=photo.width, image_height=photo.height)

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        if request.image.WhichOneof("source") != "aligned_face":
            return pb.EmbedResponse(faces=[self.largest(request.image, context)])
        data = request.image.aligned_face.pixels.data
        crop = np.frombuffer(data, np.uint8).reshape(1, CROP, CROP, 3)
        vector = self.networks.embed(crop, request.embedder.name or "sface")[0]
        return pb.EmbedResponse(faces=[pb.Face(embedding=to_embedding(vector))])

    def Verify(self, request: pb.VerifyRequest, context: Any) -> pb.VerifyResponse:  # noqa: N802
        a, b = (self.largest(side.image, context) for side in (request.a, request.b))
        similarity = float(np.dot(a.embedding.values, b.embedding.values))
        matched = similarity >= 0.363
        return pb.VerifyResponse(similarity=similarity, matched=matched, face_a=a, face_b=b)

    def Analyze(self, request: pb.AnalyzeRequest, context: Any) -> pb.AnalyzeResponse:  # noqa: N802
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "peers have no analysers")
        raise NotImplementedError  # abort has raised


def serve(load: Callable[[argparse.Namespace], Networks], parser: argparse.ArgumentParser) -> None:
    """Reads the command line, loads the networks, serves until it is killed."""
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--graphs", type=Path, required=True)
    parser.add_argument("--canvas", type=int, default=320)
    options = parser.parse_args()
    server = grpc.server(
        ThreadPoolExecutor(THREADS), options=[("grpc.max_receive_message_length", MAX_BYTES)]
    )
    add_FaceServiceServicer_to_server(ByHand(load(options), options.canvas), server)
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()
    server.wait_for_termination()
