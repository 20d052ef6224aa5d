"""The settings that are tried of a model, and how they become a slot's policy."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product

from mien_server.backends.devices import thread_counts
from mien_server.backends.instance import Computes
from mien_server.backends.openvino_models import multiplies_bf16
from mien_server.backends.precision import cpu_multiplies_bf16
from mien_server.repository.config.model import Backend, ModelConfig
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.tuning import Setting

PREFERRED = (1, 2, 4, 8, 16)
DELAYS_MS = (0.0, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a model.

    Attributes:
        backend: what runs it on the device.
        precision: what it computes in, "auto" resolved.
        preferred: `preferred_batch_size`; None: requests are not combined.
        delay_ms: `max_queue_delay_microseconds`, in milliseconds.
        count: batches at once on each device; 0: as the file says, which has several `instance_group`s.
    """

    backend: Backend
    precision: Computes
    preferred: tuple[int, ...] | None
    delay_ms: float
    count: int

    def __str__(self) -> str:
        sizes = "alone"
        if self.preferred is not None:
            sizes = f"batches of {'/'.join(map(str, self.preferred)) or 'any size'}"
        text = f"{self.backend} {self.precision}, {sizes}, delay {self.delay_ms:g} ms"
        return f"{text}, {self.count} at once" if self.count else text

    def policy(self, own: BatchingPolicy) -> BatchingPolicy:
        """The model's own policy with what this candidate changes."""
        return replace(
            own,
            combine=self.preferred is not None,
            preferred_batch_sizes=self.preferred or (),
            max_queue_delay=self.delay_ms / 1e3,
        )


def own_candidate(
    config: ModelConfig, backend: Backend, precision: Computes, executors: int
) -> Candidate:
    """The model's settings as they are.

    Args:
        config: of the model.
        backend: what runs it, as loaded.
        precision: what it computes in, as loaded.
        executors: batches that each of its devices runs at once.
    """
    groups, policy = config.instance_groups, config.batching
    return Candidate(
        backend=backend,
        precision=precision,
        preferred=policy.preferred_batch_sizes if policy.combine else None,
        delay_ms=policy.max_queue_delay * 1e3,
        count=min(groups[0].count or executors, executors) if len(groups) == 1 else 0,
    )


def others(
    config: ModelConfig, own: Candidate, keep: Collection[Setting], *, on_cpu: bool
) -> list[tuple[Backend, Computes]]:
    """The pairs of backend and precision, beside its own, that may run the model.

    On a processor the backend is the model's `backend` or OpenVINO, as `cpu_backend` chooses between them. A
    model.onnx computes in what it was made in. Whether a pair loads, only loading tells.
    """
    backends = [own.backend]
    if on_cpu and "backend" not in keep:
        backends += [config.backend, "openvino"]
    fixed = "precision" in keep or config.default_model_filename.endswith(".onnx")
    found = [
        (backend, precision)
        for backend in backends
        for precision in ([own.precision] if fixed else _precisions(backend, on_cpu=on_cpu))
    ]
    return [pair for pair in dict.fromkeys(found) if pair != (own.backend, own.precision)]


def _precisions(backend: Backend, *, on_cpu: bool) -> list[Computes]:
    if not on_cpu:
        return ["fp16", "bf16", "fp32"]
    native = multiplies_bf16() if backend == "openvino" else cpu_multiplies_bf16()
    return ["bf16", "fp32"] if native else ["fp32"]


def grid(
    own: Candidate,
    loaded: Sequence[tuple[Backend, Computes]],
    *,
    max_batch_size: int,
    executors: int,
    keep: Collection[Setting],
) -> list[Candidate]:
    """All candidates, the model's own settings first.

    Args:
        own: the model's settings as they are.
        loaded: pairs of backend and precision that can run it.
        max_batch_size: rows of its largest batch.
        executors: batches that its device runs at once.
        keep: settings that stay as they are.
    """
    sizes: list[tuple[int, ...] | None] = [(n,) for n in PREFERRED if n <= max_batch_size]
    idle = own.delay_ms if "delay" in keep else 0.0
    found = [own]
    for (backend, precision), preferred, delay, count in product(
        loaded,
        [own.preferred] if "batch" in keep else sizes,
        [own.delay_ms] if "delay" in keep else DELAYS_MS,
        [own.count] if "count" in keep or not own.count else thread_counts(executors),
    ):
        # No batch waits that is full with one row.
        waits = preferred is not None and preferred != (1,)
        if waits or delay == idle:
            found.append(Candidate(backend, precision, preferred, delay, count))
    return list(dict.fromkeys(found))
