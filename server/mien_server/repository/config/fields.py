"""Which fields of Triton's schema mien honours. Everything else is refused or warned of by name."""

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

from mien_server.repository.config.pbtxt import ConfigText, FieldPath, field_name

_log = logging.getLogger(__name__)

FieldTree: TypeAlias = Mapping[str, "FieldTree | None"]
"""Names of fields, each with those of the message in it, or None: all of it."""


def _leaves(*names: str) -> FieldTree:
    return dict.fromkeys(names)


_QUEUE_POLICY = _leaves(
    "timeout_action", "default_timeout_microseconds", "allow_timeout_override", "max_queue_size"
)

MODEL_FIELDS: FieldTree = {
    **_leaves("name", "backend", "platform", "max_batch_size", "default_model_filename"),
    "version_policy": {
        "latest": _leaves("num_versions"),
        "all": {},
        "specific": _leaves("versions"),
    },
    "input": _leaves("name", "data_type", "format", "dims"),
    "output": _leaves("name", "data_type", "dims", "label_filename"),
    "instance_group": _leaves("kind", "count", "gpus"),
    "dynamic_batching": {
        **_leaves(
            "preferred_batch_size",
            "max_queue_delay_microseconds",
            "preserve_ordering",
            "priority_levels",
            "default_priority_level",
        ),
        "default_queue_policy": _QUEUE_POLICY,
        "priority_queue_policy": _QUEUE_POLICY,
    },
    "model_warmup": {
        **_leaves("name", "batch_size", "count"),
        "inputs": _leaves("data_type", "dims", "zero_data", "random_data"),
    },
    "parameters": _leaves("string_value"),
    "model_transaction_policy": {},  # `decoupled: false` is how mien answers; true is refused
}
"""What mien honours of a model's config."""

ENSEMBLE_FIELDS: FieldTree = {
    **_leaves("name", "platform", "max_batch_size"),
    "input": _leaves("name", "data_type", "dims"),
    "output": _leaves("name", "data_type", "dims"),
    "ensemble_scheduling": {
        "step": _leaves("model_name", "model_version", "input_map", "output_map"),
    },
}
"""What mien honours of an ensemble's config."""

# These tune how Triton runs a model, or name parts of it in its logs, and change no answer.
_WITHOUT_EFFECT = {
    ("optimization",),
    ("metric_tags",),
    ("model_metrics",),
    ("response_cache",),
    ("instance_group", "name"),
    ("instance_group", "rate_limiter"),
    ("instance_group", "host_policy"),
    ("output", "label_filename"),
}

_INSTEAD = {
    (
        "sequence_batching",
    ): "is not supported: the models keep no state between requests; remove it",
    ("ensemble_scheduling",): 'is not supported without platform: "ensemble"',
    ("model_warmup", "inputs", "input_data_file"): "is not supported; use random_data or zero_data",
    ("model_transaction_policy", "decoupled"): "is not supported: each request has one answer",
}


def check_fields(text: ConfigText, honoured: FieldTree) -> None:
    """Refuses fields that are not honoured; warns of those that would change no answer.

    Raises:
        ConfigError: the first field that is refused.
    """
    _check(text, text.message, honoured, (), ())


def _check(
    text: ConfigText, message: Any, honoured: FieldTree, path: FieldPath, names: tuple[str, ...]
) -> None:
    """`path` leads through the file, `names` through the schema: without indices and keys."""
    for descriptor, value in message.ListFields():
        at, name = (*path, descriptor.name), (*names, descriptor.name)
        if descriptor.name not in honoured:
            if name not in _WITHOUT_EFFECT:
                raise text.error(at, _INSTEAD.get(name, "is not supported; remove it"))
            _log.warning("%s:%d: %s has no effect", text.path, text.line(at), field_name(at))
        elif (inner := honoured[descriptor.name]) is not None:
            for step, child in _messages(descriptor, value):
                _check(text, child, inner, (*at, *step), name)


def _messages(descriptor: Any, value: Any) -> list[tuple[FieldPath, Any]]:
    """The messages in a field, each with the index or the key that leads to it."""
    if not descriptor.is_repeated:
        return [((), value)]
    if descriptor.message_type.GetOptions().map_entry:
        return [((str(key),), child) for key, child in value.items()]
    return [((index,), child) for index, child in enumerate(value)]
