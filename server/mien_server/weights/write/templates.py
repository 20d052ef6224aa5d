"""The config.pbtxt of a model that comes into a repository with its first weights."""

from string import Template

from mien_server.models.crops import Window
from mien_server.models.families import find_family
from mien_server.models.interface import CROP_SIDE, Normalisation
from mien_server.models.roles import EMBEDDER
from mien_server.weights.recognise.recognised import Recognised

_HEAD = """\
# $title: written by mien-server models import. docs/models.md explains every line.
name: $name
backend: "$backend"

# Rows that one batch may have, and the sizes worth forming. On a processor four already reach the
# peak; on a GPU add larger ones.
max_batch_size: $max_batch_size
dynamic_batching {$preferred }

# A GPU where there is one, else the processor.
instance_group [ { kind: KIND_AUTO } ]
"""

_LANDMARKS = """,
  { name: "landmarks", data_type: TYPE_FP32, dims: [ -1, 5, 2 ] }"""
_PREFERRED = 4


def config_text(name: str, recognised: Recognised, *, license_: str, source: str) -> str:
    """A whole config.pbtxt with everything that the recognised weights decide.

    Args:
        name: the model's folder.
        recognised: of a known normalisation.
        license_: who may use the weights for what, for people.
        source: where they come from, for people.
    """
    assert recognised.normalisation is not None  # noqa: S101 - as said above
    parameters = {
        "architecture": recognised.architecture,
        "precision": "auto",
        **recognised.told,
        **input_parameters(recognised.normalisation),
        **({"window": window_text(recognised.window)} if recognised.window else {}),
        "license": license_,
        "source": source,
    }
    role = find_family(recognised.architecture).role
    rows = recognised.batch or role.template_rows
    buckets = (recognised.side,) if recognised.side else recognised.buckets
    side = recognised.side or (CROP_SIDE if role is EMBEDDER else buckets[0])
    return Template(_HEAD + role.template).substitute(
        title=" ".join(recognised.title.split()),
        name=_quoted(name),
        backend=recognised.backend,
        max_batch_size=rows,
        preferred=f" preferred_batch_size: [ {_PREFERRED} ]" if rows > _PREFERRED else "",
        dimensions=recognised.dimensions,
        landmarks=_LANDMARKS if recognised.landmarks else "",
        parameters=",\n  ".join(
            f"{{ key: {_quoted(key)}, value: {{ string_value: {_quoted(value)} }} }}"
            for key, value in parameters.items()
        ),
        buckets=", ".join(map(str, buckets)),
        side=side,
    )


def input_parameters(normalisation: Normalisation) -> dict[str, str]:
    """The parameters of config.pbtxt that say what a network's input is."""
    mean = normalisation.mean if len(set(normalisation.mean)) > 1 else normalisation.mean[:1]
    scale = normalisation.scale if isinstance(normalisation.scale, tuple) else [normalisation.scale]
    return {
        "channel_order": normalisation.channel_order,
        "mean": ", ".join(f"{value:g}" for value in mean),
        "scale": ", ".join(f"{each:g}" if each >= 1 else f"1/{1 / each:g}" for each in scale),
    }


def window_text(window: Window) -> str:
    """The parameter `window` of config.pbtxt."""
    return ", ".join(f"{value:g}" for value in window)


def _quoted(text: str) -> str:
    escaped = " ".join(text.split()).replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'
