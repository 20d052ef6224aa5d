"""Writes a candidate's settings into the text of a model's config.pbtxt."""

from mien_server.repository.config.editing import with_field, with_parameter
from mien_server.repository.config.model import parse_config
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.tuning.candidates import Candidate


def tuned(text: ConfigText, own: Candidate, chosen: Candidate) -> ConfigText:
    """The model's own text, in which only the settings differ that the candidate changes.

    Args:
        text: of the config.pbtxt.
        own: what it says now.
        chosen: what it is to say.

    Raises:
        ConfigError: what comes of it is no config of a model.
    """
    if chosen.backend != own.backend:
        text = with_parameter(text, "cpu_backend", chosen.backend)
    if chosen.precision != own.precision:
        text = with_parameter(text, "precision", chosen.precision)
    if chosen.preferred is not None and chosen.preferred != own.preferred:
        sizes = ", ".join(map(str, chosen.preferred))
        text = with_field(text, ("dynamic_batching", "preferred_batch_size"), f"[ {sizes} ]")
    if chosen.delay_ms != own.delay_ms:
        delay = str(round(chosen.delay_ms * 1e3))
        text = with_field(text, ("dynamic_batching", "max_queue_delay_microseconds"), delay)
    if chosen.count != own.count:
        text = with_field(text, ("instance_group", 0, "count"), str(chosen.count))
    parse_config(text)
    return text
