"""LitServe with its batching, and OpenVINO. It speaks HTTP: a JPEG as the body, JSON as the answer.

    python -m bench.peers.by_hand.litserve_batched --port 8103 --graphs FOLDER

Tuned: a worker process for each core; the body goes in as it is, not as a form, which would be parsed; a
batch waits 2 ms at most (with 0, LitServe's workers would poll without pause); the faster of its queues.
"""

import argparse
import os
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body

from bench.peers.by_hand.batched import BATCH, BATCH_SECONDS, BatchedFaces, Embedded


class Embed(litserve.LitAPI):
    """POST /embed: the largest face of a photo."""

    def __init__(self, graphs: Path, canvas: int) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_SECONDS, api_path="/embed")
        self.graphs, self.canvas = graphs, canvas

    def setup(self, device: str) -> None:
        self.faces = BatchedFaces(self.graphs, self.canvas)

    # The annotation is what makes LitServe hand over the body as it is.
    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, jpegs: list[bytes]) -> list[Embedded | None]:
        return self.faces.embed(jpegs)

    def unbatch(self, output: list[Embedded | None]) -> list[Embedded | None]:
        return output

    def encode_response(self, output: Embedded | None) -> dict[str, Any]:
        if output is None:
            return {"error": "no face"}
        photo, face, vector = output
        scale = photo.width / photo.pixels.shape[1]
        return {
            "box": (face.box * scale).tolist(),
            "score": face.score,
            "landmarks": (face.landmarks * scale).tolist(),
            "embedding": (vector / np.linalg.norm(vector)).tolist(),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--graphs", type=Path, required=True)
    parser.add_argument("--canvas", type=int, default=320)
    options = parser.parse_args()
    litserve.LitServer(
        Embed(options.graphs, options.canvas),
        accelerator="cpu",
        workers_per_device=len(os.sched_getaffinity(0)),
        fast_queue=True,
    ).run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
