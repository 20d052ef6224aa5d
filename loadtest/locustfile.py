"""Locust users that call a mien server with the SDK: Detect, Embed and Verify on the portraits.

`FaceUser` is a closed loop: a user sends its next call when it has the answer to the last. `OpenFaceUser` is
an open one: calls come as a Poisson process, whether or not earlier ones are done, and latencies count from
the moment that a call was due. Both follow the shape that --shape names.

Each call is one entry of locust's statistics under its own name; a failed one counts under the reason of its
error ("QUEUE_FULL"), a wrong answer under WRONG_ANSWER. What the server says of its queues and batches, and
whether the objectives of --slo are met, is printed at the end.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from grpc.experimental import gevent as grpc_gevent

# Before any channel: else the first call blocks the loop on which all of locust's users run.
grpc_gevent.init_gevent()

import gevent  # noqa: E402
from gevent.pool import Group  # noqa: E402
from locust import LoadTestShape, User, constant, events, task  # noqa: E402
from locust.exception import StopUser  # noqa: E402
from locust.runners import WorkerRunner  # noqa: E402

import mien  # noqa: E402
from loadtest.slo import ALL, broken_objectives, read_objectives  # noqa: E402
from mien_server.load.shapes import SHAPES, Shape, arrivals  # noqa: E402
from mien_server.load.tally import Tally, markdown  # noqa: E402

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
PHOTOS = {path.stem: path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))}
PEOPLE = {name: name.rpartition("_")[0] for name in PHOTOS if name.startswith("person")}
A_DAY = 24 * 60 * 60
"""Seconds that a load without an end takes."""

TALLIES: dict[str, Tally] = defaultdict(Tally)
"""Of this process, by call; a worker's wait there until it next reports to its master."""

Answer = TypeVar("Answer", mien.DetectResult, mien.EmbedResult, mien.VerifyResult)


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """The options beside locust's own; the web page asks for them, too."""
    parser.add_argument("--shape", choices=list(SHAPES), default="steady", help="of the load")
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second of OpenFaceUser")
    parser.add_argument(
        "--slo", default="", help="a TOML file of objectives", include_in_web_ui=False
    )


def shape_of(level: float, options: Any) -> Shape:
    """The shape that the options ask for."""
    return SHAPES[options.shape](level, float(options.run_time or A_DAY))


class Staged(LoadTestShape):
    """As many users as the shape says: --users at its peak, until --run-time is over."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users at this moment, and how many to start a second; None at the end."""
        assert self.runner is not None  # noqa: S101 - locust sets it before the first tick
        options: Any = self.runner.environment.parsed_options
        users = options.num_users or 1
        if options.rate:  # of an open loop it is the rate that follows the shape
            return (users, users) if self.get_run_time() < (options.run_time or A_DAY) else None
        level = shape_of(users, options).level(self.get_run_time())
        return None if level is None else (max(1, round(level)), users)


class _Caller(User):
    """A service with a connection of its own."""

    abstract = True
    host = "127.0.0.1:8001"
    wait_time = constant(0)

    def on_start(self) -> None:
        """Connects."""
        self.client = mien.Client(self.host)
        self.random = Random()  # noqa: S311 - picks photos

    def on_stop(self) -> None:
        """Closes the connection."""
        self.client.close()

    def detect(self, due: float | None = None) -> None:
        """The faces of a portrait: one."""
        name = self.random.choice(list(PHOTOS))
        self.call(
            "Detect",
            lambda: self.client.detect(PHOTOS[name], timing=True),
            lambda result: len(result.faces) == 1,
            due,
        )

    def embed(self, due: float | None = None) -> None:
        """The face of a portrait as a vector of unit length."""
        name = self.random.choice(list(PHOTOS))
        self.call(
            "Embed",
            lambda: self.client.embed(PHOTOS[name], timing=True),
            lambda result: abs(float((result.embedding.values**2).sum()) - 1) < 1e-2,
            due,
        )

    def verify(self, due: float | None = None) -> None:
        """Two portraits: the same person, or not."""
        a, b = self.random.sample(list(PHOTOS), 2)
        same = PEOPLE.get(a, a) == PEOPLE.get(b, b)
        self.call(
            "Verify",
            lambda: self.client.verify(PHOTOS[a], PHOTOS[b], timing=True),
            lambda result: result.matched == same,
            due,
        )

    def call(
        self,
        name: str,
        send: Callable[[], Answer],
        is_right: Callable[[Answer], bool],
        due: float | None,
    ) -> None:
        """Sends one call and enters it into the statistics, ours and locust's."""
        due = time.time() if due is None else due
        stages: tuple[mien.StageTiming, ...] = ()
        failure: str | None = None
        try:
            answer = send()
        except mien.MienError as error:
            failure = error.reason
        else:
            stages = answer.timing
            failure = None if is_right(answer) else "WRONG_ANSWER"
        ended = time.time()
        TALLIES[name].add(due, ended, failure=failure, stages=stages)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=name,
            response_time=(ended - due) * 1000,
            response_length=0,
            exception=RuntimeError(failure) if failure else None,
            context={},
        )


class FaceUser(_Caller):
    """A service that sends one photo after the other, without pause."""

    @task(2)
    def next_detect(self) -> None:
        """Detects."""
        self.detect()

    @task(2)
    def next_embed(self) -> None:
        """Embeds."""
        self.embed()

    @task(1)
    def next_verify(self) -> None:
        """Verifies."""
        self.verify()


class OpenFaceUser(_Caller):
    """Its share of a stream of calls, each sent when it is due. --rate is that of all users together."""

    @task
    def stream(self) -> None:
        """The calls of the whole shape; ends when all are answered."""
        options = self.environment.parsed_options
        share = options.rate / (options.num_users or 1)
        started = time.time()
        calls = Group()
        for moment in arrivals(shape_of(share, options), self.random):
            gevent.sleep(max(0.0, started + moment - time.time()))
            (call,) = self.random.choices((self.detect, self.embed, self.verify), (2, 2, 1))
            calls.spawn(call, started + moment)
        calls.join()
        raise StopUser


@events.report_to_master.add_listener
def send_tallies(client_id: str, data: dict[str, Any]) -> None:
    """A worker's calls since its last report go to the master."""
    del client_id
    data["tallies"] = {name: tally.as_dict() for name, tally in TALLIES.items()}
    TALLIES.clear()


@events.worker_report.add_listener
def take_tallies(client_id: str, data: dict[str, Any]) -> None:
    """The master adds them to its own."""
    del client_id
    for name, values in data.get("tallies", {}).items():
        TALLIES[name].merge(Tally.of(values))


@events.test_start.add_listener
def start_anew(**_: Any) -> None:
    """A load that is started from the web page knows nothing of the one before."""
    TALLIES.clear()


@events.quitting.add_listener
def conclude(environment: Any, **_: Any) -> None:
    """Prints the figures; with objectives, whether they are met is the exit status."""
    if isinstance(environment.runner, WorkerRunner):
        return
    everything = Tally()
    for tally in TALLIES.values():
        everything.merge(tally)
    seconds = max(0.0, everything.ended - everything.began)
    measured = {name: TALLIES[name].summary(seconds) for name in sorted(TALLIES)}
    measured[ALL] = everything.summary(seconds)
    print(markdown(measured), flush=True)
    if environment.parsed_options.slo:
        objectives = read_objectives(Path(environment.parsed_options.slo))
        broken = broken_objectives(objectives, measured)
        print("\n".join(f"SLO broken: {line}" for line in broken) or "SLO kept", flush=True)
        environment.process_exit_code = 1 if broken else 0
