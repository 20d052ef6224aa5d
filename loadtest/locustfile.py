"""Locust users that call a mien server with the SDK: Detect, Embed and Verify on the portraits.

Each call is one entry of locust's statistics under its own name; a failed one counts under the
reason of its error ("QUEUE_FULL"), a wrong answer under WRONG_ANSWER.
"""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from grpc.experimental import gevent as grpc_gevent

# Before any channel: else the first call blocks the loop on which all of locust's users run.
grpc_gevent.init_gevent()

from locust import User, constant, task  # noqa: E402

import mien  # noqa: E402

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
PHOTOS = {path.stem: path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))}
PEOPLE = {name: name.rpartition("_")[0] for name in PHOTOS if name.startswith("person")}

Answer = TypeVar("Answer")


class FaceUser(User):
    """A service that sends one photo after the other, without pause."""

    host = "127.0.0.1:8001"
    wait_time = constant(0)

    def on_start(self) -> None:
        """A connection of its own, as separate services have."""
        self.client = mien.Client(self.host)
        self.random = Random()  # noqa: S311 - picks photos

    def on_stop(self) -> None:
        """Closes it."""
        self.client.close()

    @task(2)
    def detect(self) -> None:
        """The faces of a portrait: one."""
        name = self.random.choice(list(PHOTOS))
        self.call("Detect", lambda: self.client.detect(PHOTOS[name]), lambda r: len(r.faces) == 1)

    @task(2)
    def embed(self) -> None:
        """The face of a portrait as a vector of unit length."""
        name = self.random.choice(list(PHOTOS))
        self.call(
            "Embed",
            lambda: self.client.embed(PHOTOS[name]),
            lambda result: abs(float((result.embedding.values**2).sum()) - 1) < 1e-2,
        )

    @task(1)
    def verify(self) -> None:
        """Two portraits: the same person, or not."""
        a, b = self.random.sample(list(PHOTOS), 2)
        same = PEOPLE.get(a, a) == PEOPLE.get(b, b)
        self.call(
            "Verify",
            lambda: self.client.verify(PHOTOS[a], PHOTOS[b]),
            lambda result: result.matched == same,
        )

    def call(
        self, name: str, send: Callable[[], Answer], is_right: Callable[[Answer], bool]
    ) -> None:
        """Sends one call and enters it into the statistics."""
        failure: Exception | None = None
        began = time.perf_counter()
        try:
            answer = send()
        except mien.MienError as error:
            failure = RuntimeError(error.reason)
        else:
            failure = None if is_right(answer) else RuntimeError("WRONG_ANSWER")
        self.environment.events.request.fire(
            request_type="gRPC",
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=failure,
            context={},
        )
