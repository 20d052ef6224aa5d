"""How much memory the settings allow beside the models and the libraries: docs/hardening.md explains it."""

from mien_server.settings import Settings

CONNECTION_BYTES = 64 * 1024
"""Of an idle connection, as measured, with room to spare."""

GROUPING_BYTES = 512 * 1024 * 1024
"""Of the one Group that runs at a time, as measured, with room to spare."""


def worst_case(settings: Settings, connections: int) -> dict[str, int]:
    """Bytes that calls and connections may hold at worst, by what they are.

    Args:
        connections: how many there may be.
    """
    calls = settings.max_pending_requests
    arriving = (settings.max_arriving_requests or calls) + settings.max_health_checks
    return {
        # Bytes that have not all come yet: up to a whole message each.
        "arriving": arriving * settings.max_message_bytes,
        # A message, and the photo that is read from it.
        "requests": 2 * settings.max_pending_bytes,
        # Their pixels, and what decoders need beside those.
        "pictures": 2 * settings.decode_limits[1],
        # Canvases, crops and tensors that wait for a model.
        "queues": settings.queue_limits[1],
        "connections": connections * CONNECTION_BYTES,
        "galleries": _galleries(settings),
    }


def _galleries(settings: Settings) -> int:
    if settings.gallery_dir is not None:
        # Reembed has a collection's old vectors and its new ones for a moment.
        return 2 * settings.gallery_max_bytes + GROUPING_BYTES
    return GROUPING_BYTES if settings.gallery_url is not None else 0
