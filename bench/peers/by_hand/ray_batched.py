"""Ray Serve with `@serve.batch` and its gRPC ingress, and OpenVINO.

    python -m bench.peers.by_hand.ray_batched --port 8104 --graphs FOLDER

Tuned: one replica for each core runs the whole of a batch, so that no pixels travel between processes; the
batch is computed beside the replica's event loop; no dashboard, no access log, no usage statistics.
"""

import argparse
import asyncio
import os
import time
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import gRPCOptions

from bench.peers.by_hand.batched import BATCH, BATCH_SECONDS, BatchedFaces, Embedded
from bench.peers.by_hand.service import to_face
from mien.v1 import face_pb2 as pb

CORES = len(os.sched_getaffinity(0))


@serve.deployment(num_replicas=CORES, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Faces:
    """FaceService.Embed for photos."""

    def __init__(self, graphs: Path, canvas: int) -> None:
        self.faces = BatchedFaces(graphs, canvas)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_SECONDS)
    async def batched(self, jpegs: list[bytes]) -> list[Embedded | None]:
        return await asyncio.to_thread(self.faces.embed, jpegs)

    async def Embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:  # noqa: N802
        embedded = await self.batched(request.image.encoded)
        return pb.EmbedResponse(faces=[to_face(*embedded)] if embedded else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--graphs", type=Path, required=True)
    parser.add_argument("--canvas", type=int, default=320)
    options = parser.parse_args()
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    register = "mien.v1.face_pb2_grpc.add_FaceServiceServicer_to_server"
    serve.start(
        http_options={"host": "127.0.0.1", "port": 0},
        grpc_options=gRPCOptions(port=options.port, grpc_servicer_functions=[register]),
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    faces = Faces.bind(options.graphs, options.canvas)  # type: ignore[attr-defined]
    serve.run(faces)
    while True:
        time.sleep(3600)
