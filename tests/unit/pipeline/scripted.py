"""A pipeline over real slots whose models are scripted: faces are painted, vectors are colours."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import cv2
import numpy as np

from mien_server.models.detections import Detections
from mien_server.models.interface import AnyRole, Normalisation, TensorSpec
from mien_server.models.roles import (
    DETECTOR,
    EMBEDDER,
    DetectorOptions,
    DetectorRow,
    EmbedderOptions,
    EmbedderRow,
)
from mien_server.pipeline.align import TEMPLATE
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.requirements import Requirements
from mien_server.pipeline.types import (
    ArrayF32,
    Call,
    Embedding,
    FacePolicy,
    FaceSelection,
    Limits,
    ModelIdentity,
    ModelRef,
    RawPixels,
)
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.config.model import InstanceGroup, ModelConfig
from mien_server.repository.traffic import Traffic
from mien_server.repository.versions import LoadedVersion, ReadyModel
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.interface import Completion, PlacedInstance, Work
from mien_server.scheduling.scheduler import Scheduler, Slot
from tests.scheduling_rig import FakeDevice

PAINT = (255, 0, 255)
GROUND = (60, 120, 60)
ALL = FaceSelection(FacePolicy.ALL)
LARGEST = FaceSelection(FacePolicy.LARGEST)


def painted(width: int, height: int, *faces: tuple[int, int, int]) -> RawPixels:
    """A photo whose faces are squares (x, y, side)."""
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    for x, y, side in faces:
        pixels[y : y + side, x : x + side] = PAINT
    return RawPixels(height, width, pixels.tobytes())


def find_paint(row: DetectorRow) -> Detections:
    """Every painted square; its score grows with its side, 0.9 at 90 canvas pixels."""
    mask = (np.abs(row.image.astype(int) - PAINT).sum(axis=2) < 100).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:]], np.float32)
    boxes = boxes.reshape(-1, 4)
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    scores = np.minimum(side / 100, 1).astype(np.float32)
    order = np.flatnonzero(scores > row.min_score)
    order = order[np.argsort(-scores[order], kind="stable")]
    boxes, scores, side = boxes[order], scores[order], side[order]
    return Detections(boxes, scores, boxes[:, None, :2] + TEMPLATE / 112 * side[:, None, None])


def boxes_alone(row: DetectorRow) -> Detections:
    """The same of a detector that places no landmarks."""
    found = find_paint(row)
    return found._replace(landmarks=found.landmarks[:, :0])


def mean_colour(row: EmbedderRow) -> ArrayF32:
    """The mean colour of the crop's upper and lower half: [6], raw."""
    halves = row.image.reshape(2, 56 * 112, 3).astype(np.float32)
    colours: ArrayF32 = halves.mean(axis=1).reshape(-1)
    return colours


@dataclass
class Scripted:
    """An instance whose model is a function of one row."""

    answer: Callable[[Any], Any]
    batches: list[list[Any]] = field(default_factory=list)
    gate: threading.Event | None = None
    begun: threading.Event = field(default_factory=threading.Event)

    def collate(self, rows: Sequence[Any]) -> list[Any]:
        self.batches.append(list(rows))
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        return list(rows)

    def compute(self, batch: list[Any]) -> list[Any]:
        return [self.answer(row) for row in batch]

    def split(self, outputs: list[Any], rows: Sequence[Any]) -> list[Any]:
        return outputs


class Noted:
    """A slot, and what it was asked."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.requests: list[Work] = []

    def submit(self, work: Work) -> Future[Completion]:
        self.requests.append(work)
        return self._slot.submit(work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slot, name)


class World:
    """A pipeline with everything below it, and the models it finds."""

    def __init__(self, pool: PicturePool | None = None) -> None:
        self.scheduler = Scheduler([FakeDevice("cpu"), FakeDevice("gpu")])
        self.pool = pool or PicturePool(threads=1, max_requests=8)
        self.detector = Scripted(find_paint)
        self.embedder = Scripted(mean_colour)
        self.catalogue = Catalogue()
        self.slots: dict[tuple[str, int], Noted] = {}
        self.add("finder", DETECTOR, self.detector)
        self.add("vectors", EMBEDDER, self.embedder)
        self.pipeline = FacePipeline(
            self.catalogue,
            self.pool,
            default_detector="finder",
            default_embedder="vectors",
            limits=Limits(max_faces=20),
        )

    def add(
        self,
        name: str,
        role: AnyRole,
        instance: Scripted,
        *,
        version: int = 1,
        match_threshold: float | None = 0.95,
        traffic: Traffic = Traffic(),  # noqa: B008 - frozen
        takes: int = 4,
        device: str = "cpu",
        options: Any = None,
        values: int = 6,
    ) -> None:
        """Adds a version of a model, whose slot takes so many rows a request, perhaps with other options.

        Its config.pbtxt promises so many values of a face.
        """
        policy = BatchingPolicy(max_batch_size=takes)
        placed = [PlacedInstance(instance, device)]
        slot = Noted(self.scheduler.open_slot(name, version, policy, placed))
        self.slots[name, version] = slot
        config = ModelConfig(
            name=name,
            backend="pytorch",
            architecture="scripted",
            role=role,
            precision="fp32",
            normalisation=Normalisation("RGB", (104, 117, 123), 1.0),
            options=options
            or (
                DetectorOptions((320, 640, 1024), score_threshold=0.05)
                if role is DETECTOR
                else EmbedderOptions(match_threshold)
            ),
            batching=BatchingPolicy(max_batch_size=4),
            instance_groups=(InstanceGroup("cpu"),),
            outputs=(TensorSpec("face", "TYPE_FP32", (values,)),),
            traffic=traffic,
        )
        model = ReadyModel(name, version, f"{name}-print", config, cast(Slot, slot))
        loaded = LoadedVersion(model, {}, close=lambda: None)
        self.catalogue.list_models({name for name, _ in self.slots})
        serving = self.catalogue.serving(name)
        self.catalogue.swap(config, None, {**serving, version: loaded}, {})

    def let_go(self, seconds: float = 10) -> bool:
        """Withdraws all models: whether nobody holds any of them any more."""
        for name in {name for name, _ in self.slots}:
            self.catalogue.withdraw(name)
        return self.catalogue.drained(seconds)

    def requests(self, name: str, version: int = 1) -> list[Work]:
        return self.slots[name, version].requests

    def sides(self) -> list[int]:
        """Of the canvases that the detector has seen, in turn."""
        return [row.image.shape[0] for batch in self.detector.batches for row in batch]

    async def detect(self, image: Any, selection: FaceSelection = ALL, **options: Any) -> Any:
        call = options.pop("call", None) or Call()
        ref = options.pop("detector", ModelRef())
        return await self.pipeline.detect(
            image, detector=ref, selection=selection, call=call, analysers=named(options)
        )

    async def embed(self, image: Any, selection: FaceSelection = LARGEST, **options: Any) -> Any:
        return await self.pipeline.embed(
            image,
            detector=options.get("detector", ModelRef()),
            embedder=options.get("embedder", ModelRef()),
            selection=selection,
            call=options.get("call") or Call(),
            analysers=named(options),
            require=options.get("require", Requirements()),
        )

    async def verify(self, a: Any, b: Any, **options: Any) -> Any:
        return await self.pipeline.verify(
            a,
            b,
            detector=options.get("detector", ModelRef()),
            embedder=options.get("embedder", ModelRef()),
            selection=options.get("selection", LARGEST),
            threshold=options.get("threshold"),
            call=options.get("call") or Call(),
            analysers=named(options),
            require=options.get("require", Requirements()),
        )

    async def analyse(self, image: Any, *analysers: str, **options: Any) -> Any:
        return await self.pipeline.analyse(
            image,
            detector=options.get("detector", ModelRef()),
            analysers=[ModelRef(name) for name in analysers],
            selection=options.get("selection", ALL),
            call=options.get("call") or Call(),
            require=options.get("require", Requirements()),
            embedder=options.get("embedder"),
        )

    def close(self) -> None:
        for instance in (self.detector, self.embedder):
            if instance.gate is not None:
                instance.gate.set()
        self.pool.close()
        self.scheduler.close()


def named(options: dict[str, Any]) -> list[ModelRef]:
    """The analysers that a call names."""
    return [ModelRef(name) for name in options.get("analysers", ())]


def unit(*values: float) -> ArrayF32:
    v = np.array(values, np.float32)
    return v / np.float32(np.linalg.norm(v))


def given(values: ArrayF32, model: str = "vectors") -> Embedding:
    return Embedding(values, 1.0, ModelIdentity(model, 1, f"{model}-print"))


PAINT_VECTOR = unit(*PAINT, *PAINT)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread does, at most 10 s."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")
