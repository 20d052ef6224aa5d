"""`max_batch_size`, `dynamic_batching` and our queue limits, as a `BatchingPolicy`."""

from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from mien_server.repository.config.parameters import Parameters
from mien_server.repository.config.pbtxt import ConfigError, ConfigText, FieldPath
from mien_server.scheduling.batching import BatchingPolicy, PolicyError, QueuePolicy, TimeoutAction

QUEUE_PARAMETERS = frozenset({"max_queue_size", "max_queue_bytes", "look_ahead", "split_rows"})

_MICROSECONDS_PER_SECOND = 1_000_000
_MAX_BATCH_SIZE = 4096

# Where the fields that a `PolicyError` names stand in the file.
_PATHS: dict[str, FieldPath] = {
    "max_batch_size": ("max_batch_size",),
    **{name: ("parameters", name) for name in QUEUE_PARAMETERS},
    **{
        field.name: ("dynamic_batching", field.name)
        for field in triton.ModelDynamicBatching.DESCRIPTOR.fields
    },
}


def read_batching(text: ConfigText, parameters: Parameters) -> BatchingPolicy:
    """The batching policy that the config asks for.

    Without `dynamic_batching` requests are not combined, as in Triton: each is a batch of its own, of at
    most `max_batch_size` rows. Here they wait in the same queue, with its limits.

    Raises:
        ConfigError: what Triton would refuse, and a model without a batch dimension.
    """
    message = text.message
    if message.max_batch_size < 1:
        raise text.error(
            ("max_batch_size",),
            "must be at least 1: every network here has a batch dimension; 1 runs single rows",
        )
    if message.max_batch_size > _MAX_BATCH_SIZE:
        raise text.error(
            ("max_batch_size",), f"is {message.max_batch_size}; must be at most {_MAX_BATCH_SIZE}"
        )
    limits, batching = BatchingPolicy(), message.dynamic_batching
    options: dict[str, Any] = {
        "split_rows": parameters.flag("split_rows", default=limits.split_rows),
        "max_queue_size": parameters.integer("max_queue_size", 1, limits.max_queue_size),
        "max_queue_bytes": parameters.integer("max_queue_bytes", 1, limits.max_queue_bytes),
        "look_ahead": parameters.integer("look_ahead", 0, limits.look_ahead),
    }
    try:
        return BatchingPolicy(
            max_batch_size=message.max_batch_size,
            combine=message.HasField("dynamic_batching"),
            preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_size))),
            max_queue_delay=batching.max_queue_delay_microseconds / _MICROSECONDS_PER_SECOND,
            preserve_ordering=batching.preserve_ordering,
            priority_levels=batching.priority_levels,
            default_priority_level=batching.default_priority_level,
            default_queue_policy=_queue_policy(batching.default_queue_policy),
            priority_queue_policy={
                level: _queue_policy(policy)
                for level, policy in batching.priority_queue_policy.items()
            },
            **options,
        )
    except PolicyError as error:
        raise _located(text, error) from error


def _queue_policy(message: Any) -> QueuePolicy:
    """One level's policy. Its numbers are unsigned in Triton's schema, so that it refuses none."""
    delay = message.timeout_action == triton.ModelQueuePolicy.DELAY
    return QueuePolicy(
        timeout_action=TimeoutAction.DELAY if delay else TimeoutAction.REJECT,
        default_timeout=message.default_timeout_microseconds / _MICROSECONDS_PER_SECOND,
        allow_timeout_override=message.allow_timeout_override,
        max_queue_size=message.max_queue_size,
    )


def _located(text: ConfigText, error: PolicyError) -> ConfigError:
    """The policy's complaint at the line of the field, and of the value, that it names."""
    path = _PATHS[error.field]
    if error.field == "priority_queue_policy":
        path = (*path, error.value)  # a map, whose keys are the levels
    return text.error(path, error.problem, value=error.value)
