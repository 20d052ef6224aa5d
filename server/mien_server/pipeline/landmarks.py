"""Detectors that place no landmarks: what they can be asked for."""

from collections.abc import Mapping, Sequence

from mien_server.errors import InvalidRequest, Reason
from mien_server.models.roles import NO_LANDMARKS, DetectorOptions
from mien_server.repository.versions import Lease


def check_boxes_do(
    detector: Lease, models: Sequence[Lease], others: Mapping[str, DetectorOptions]
) -> None:
    """Refuses a detector that places no landmarks for models that see aligned faces.

    Args:
        models: those that shall see the faces that it finds, embedders and analysers.
        others: the detectors that a caller may name, of which the error tells those that will do.

    Raises:
        InvalidRequest: one of these models cannot do without landmarks.
    """
    for each in models:
        if not each.model.config.options.crop.needs_photo:
            fit = sorted(name for name, options in others.items() if options.landmarks)
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"{NO_LANDMARKS.format(detector.model.name)}, as {each.model.name} sees it: use"
                f" {' or '.join(fit) or 'another detector'}.",
            )
