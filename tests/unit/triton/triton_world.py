"""What tests of Triton's service share: real slots of scripted models, and requests for them."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any, cast

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as tritonclient
from prometheus_client import CollectorRegistry
from tritonclient.grpc import InferInput, model_config_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from mien_server.errors import ModelNotFound, ModelNotReady, Reason, Unmet
from mien_server.models.detections import Detections
from mien_server.models.interface import AnyRole, Normalisation, TensorSpec
from mien_server.models.roles import DETECTOR, EMBEDDER, DetectorOptions, EmbedderOptions
from mien_server.observability.call_metrics import CallMetrics
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.types import (
    Call,
    Embedding,
    EncodedImage,
    Face,
    FacePolicy,
    FaceSelection,
    ModelIdentity,
    ModelRef,
    PhotoFaces,
    StageTime,
)
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.config.ensembles import EnsembleConfig, EnsembleStep
from mien_server.repository.config.model import InstanceGroup, ModelConfig
from mien_server.repository.entries import Sleeper
from mien_server.repository.loader import Loader
from mien_server.repository.statistics import EnsembleCounter, VersionStatistics, totals_of
from mien_server.repository.traffic import ShadowStatistics, TrafficStatistics
from mien_server.repository.versions import Lease, ReadyModel, State, VersionStatus
from mien_server.rpc.faces import FaceService
from mien_server.rpc.galleries import GalleryService
from mien_server.rpc.intake import Intake
from mien_server.rpc.server import RpcServer
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.interface import PlacedInstance
from mien_server.scheduling.scheduler import Scheduler
from mien_server.triton.service import InferenceService
from tests.scheduling_rig import FakeDevice

CROP = (3, 112, 112)
DETECTOR_OUTPUTS = (
    TensorSpec("boxes", "TYPE_FP32", (-1, 4)),
    TensorSpec("scores", "TYPE_FP32", (-1,)),
    TensorSpec("landmarks", "TYPE_FP32", (-1, 5, 2)),
)
ENSEMBLE = EnsembleConfig(
    name="photo_to_vector",
    detector=EnsembleStep("finder"),
    embedder=EnsembleStep("vectors", 1),
    max_batch_size=4,
    inputs=(TensorSpec("image", "TYPE_STRING", (1,)),),
    outputs=(TensorSpec("vector", "TYPE_FP32", (2,)), TensorSpec("box", "TYPE_FP32", (4,))),
    values={"vector": "embedding", "box": "boxes"},
)
Script = Callable[[Any], Any]


@dataclass
class Scripted:
    """An instance whose model is a function of one row."""

    answer: Script
    gate: threading.Event | None = None
    begun: threading.Event = field(default_factory=threading.Event)

    def collate(self, rows: Sequence[Any]) -> Sequence[Any]:
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        return rows

    def compute(self, batch: Sequence[Any]) -> list[Any]:
        return [self.answer(row) for row in batch]

    def split(self, outputs: list[Any], rows: Sequence[Any]) -> list[Any]:
        return outputs


def mean_colour(row: Any) -> Any:
    """The mean of each channel [3]; a black crop fails."""
    if not row.image.any():
        raise RuntimeError("black")
    return row.image.reshape(-1, 3).mean(axis=0).astype(np.float32)


def as_many_faces_as_red(row: Any) -> Detections:
    """As many faces as the first pixel is red, all alike."""
    n = int(row.image[0, 0, 0])
    return Detections(
        np.tile(np.array([1, 2, 3, 4], np.float32), (n, 1)),
        np.full(n, 0.75, np.float32),
        np.ones((n, 5, 2), np.float32),
    )


class World:
    """The service's collaborators: real slots, a stand-in for the repository and for the pipeline."""

    def __init__(self) -> None:
        self.scheduler = Scheduler([FakeDevice()])
        self.pool = PicturePool(threads=1)
        self.ready: dict[str, list[ReadyModel]] = {}
        self.leases = 0
        self.loads: list[str] = []
        self.calls: list[Call] = []
        self.counter = EnsembleCounter()

    def add(self, name: str, role: AnyRole, instance: Scripted, **options: Any) -> ReadyModel:
        version = options.pop("version", 1)
        policy = options.pop("policy", BatchingPolicy(max_batch_size=4))
        config = ModelConfig(
            name=name,
            backend="pytorch",
            architecture="scripted",
            role=role,
            precision="fp32",
            normalisation=Normalisation("RGB", (0, 0, 0), 1.0),
            options=DetectorOptions((64, 128)) if role is DETECTOR else EmbedderOptions(),
            batching=policy,
            instance_groups=(InstanceGroup("cpu"),),
            inputs=(TensorSpec("image", "TYPE_UINT8", (3, -1, -1)),)
            if role is DETECTOR
            else (TensorSpec("face", "TYPE_UINT8", CROP),),
            outputs=DETECTOR_OUTPUTS
            if role is DETECTOR
            else (TensorSpec("embedding", "TYPE_FP32", (3,)),),
        )
        slot = self.scheduler.open_slot(name, version, policy, [PlacedInstance(instance, "cpu")])
        model = ReadyModel(name, version, "print", replace(config, **options), slot)
        self.ready.setdefault(name, []).append(model)
        return model

    def resolve(self, name: str, version: int = 0) -> ReadyModel:
        if name == "asleep":
            raise ModelNotReady("model 'asleep' is not ready: it snores")
        for model in reversed(self.ready.get(name, [])):
            if version in (0, model.version):
                return model
        raise ModelNotFound(f"there is no {name!r} {version}")

    @asynccontextmanager
    async def hold(self, name: str, version: int = 0) -> AsyncIterator[Lease]:
        model = self.resolve(name, version)
        self.leases += 1
        try:
            yield Lease(model)
        finally:
            self.leases -= 1

    def config(self, name: str, version: int = 0) -> ModelConfig:
        return self.resolve(name, version).config

    def ensemble(self, name: str, version: int = 0) -> EnsembleConfig | None:
        return ENSEMBLE if name == ENSEMBLE.name and version in (0, 1) else None

    def message(self, name: str, version: int = 0) -> Any:
        return model_config_pb2.ModelConfig(name=self.resolve(name, version).name)

    def sleepers(self) -> list[Sleeper]:
        return [Sleeper("vectors", asleep=True, slept=3, woken=2)]

    def statuses(self) -> list[VersionStatus]:
        models = [model for versions in self.ready.values() for model in versions]
        found = [VersionStatus(m.name, m.version, State.READY, model=m) for m in models]
        return [
            VersionStatus("asleep", 0, State.UNAVAILABLE, "it snores"),
            VersionStatus(ENSEMBLE.name, 1, State.READY),
            *found,
        ]

    index = statuses

    def ensemble_counter(self, name: str) -> EnsembleCounter:
        assert name == ENSEMBLE.name
        return self.counter

    def statistics(self) -> list[VersionStatistics]:
        found = [VersionStatistics(ENSEMBLE.name, 1, self.counter.copy())]
        for status in self.statuses():
            if model := status.model:
                figures, traffic = model.slot.statistics(), None
                if model.config.traffic.candidates:
                    shadow = ShadowStatistics(compared=5, agreed=4, failed=3, dropped=2)
                    traffic = TrafficStatistics(Counter({1: 9}), {2: shadow})
                found.append(
                    VersionStatistics(
                        status.name,
                        status.version,
                        totals_of(figures),
                        slot=figures,
                        pending=model.slot.pending,
                        traffic=traffic,
                    )
                )
        return found

    def load(self, name: str) -> Any:
        self.loads.append(f"load {name}")
        raise Unmet(Reason.MODEL_LOAD_FAILED, f"model {name!r} could not be loaded: it is broken")

    def unload(self, name: str) -> Any:
        self.loads.append(f"unload {name}")
        done: Future[None] = Future()
        done.set_result(None)
        return done

    async def embed(self, image: EncodedImage, *, call: Call, **options: Any) -> PhotoFaces:
        self.calls.append(call)
        assert options["detector"] == ModelRef("finder")
        assert options["embedder"] == ModelRef("vectors", 1)
        assert options["selection"] == FaceSelection(FacePolicy.LARGEST)
        if image.data == b"nobody":
            raise ModelNotFound("there is no such detector", field="detector")
        if image.data == b"empty":
            raise Unmet(Reason.FACE_NOT_FOUND, "There is no face.", field="image.encoded")
        call.stages += [
            StageTime("decode.queue", 0.01),
            StageTime("decode", 0.012),
            StageTime("detect.queue", 0.02),
            StageTime("detect.compute", 0.02, 3),
            StageTime("embed.compute", 0.03, 3),
            StageTime("embed.postprocess", 0.001),
        ]
        size = float(len(image.data))
        vector = Embedding(
            np.array([size, 0], np.float32), 1.0, ModelIdentity("vectors", 1, "print")
        )
        return PhotoFaces([Face(np.array([0, 0, size, size], np.float32), 0.5, None, vector)], 1, 1)


class Running:
    def __init__(
        self, world: World, server: RpcServer, intake: Intake, registry: CollectorRegistry
    ) -> None:
        self.registry = registry
        self.world = world
        self.server = server
        self.intake = intake
        self.client = tritonclient.InferenceServerClient(server.address)
        self.channel = grpc.aio.insecure_channel(server.address)
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    async def until(self, true: Callable[[], bool]) -> None:
        """Lets the event loop go on until something holds."""
        async with asyncio.timeout(10):
            while not true():  # noqa: ASYNC110 - what it watches changes on other threads, too
                await asyncio.sleep(0)


def crops(*colours: tuple[int, int, int]) -> list[InferInput]:
    """One crop of each colour."""
    pixels = np.empty((len(colours), *CROP), np.uint8)
    pixels[:] = np.array(colours, np.uint8)[:, :, None, None]
    tensor = InferInput("face", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def canvases(side: int, *reds: int, width: int | None = None) -> list[InferInput]:
    pixels = np.zeros((len(reds), 3, side, width or side), np.uint8)
    pixels[:, 0] = np.array(reds, np.uint8)[:, None, None]
    tensor = InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def photos(*data: bytes) -> list[InferInput]:
    tensor = InferInput("image", [len(data), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(data, np.object_).reshape(-1, 1))
    return [tensor]


async def refusal(call: Any) -> tuple[str, str]:
    """The status and the message that a call fails with."""
    with pytest.raises(InferenceServerException) as caught:
        await call
    status = caught.value.status()
    return str(status).removeprefix("StatusCode."), caught.value.message()


@asynccontextmanager
async def serving(*, loading: bool = False, **options: Any) -> AsyncIterator[Running]:
    """A server of two models, `vectors` and `finder`, ready unless `loading`; and clients of it.

    Args:
        loading: whether it is not ready yet.
        options: of `RpcServer`, beside those that every server here has.
    """
    world = World()
    world.add("vectors", EMBEDDER, Scripted(mean_colour))
    world.add("finder", DETECTOR, Scripted(as_many_faces_as_red))
    intake = Intake(max_calls=100, max_bytes=1 << 26)
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    server = RpcServer(
        address=IPv4Address("127.0.0.1"),
        port=0,
        max_message_bytes=1 << 26,
        intake=intake,
        metrics=metrics,
        **options,
    )
    pipeline = cast(FacePipeline, world)
    service = InferenceService(
        cast(Catalogue, world),
        cast(Loader, world),
        pipeline,
        world.pool,
        intake,
        metrics,
        ready=lambda: server.ready,
        default_deadline=30,
    )
    faces = FaceService(pipeline, default_deadline=30)
    galleries = GalleryService(None, default_deadline=30)
    await server.start(faces, galleries=galleries, inference=service, reflect=True)
    if not loading:
        intake.open()
        await server.set_ready(True)
    running = Running(world, server, intake, registry)
    try:
        yield running
    finally:
        await running.client.close()
        await running.channel.close()
        await server.close()
        world.pool.close()
        world.scheduler.close()
