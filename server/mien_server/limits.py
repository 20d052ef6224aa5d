"""How much memory the settings allow beside the models and the libraries: docs/hardening.md explains it."""

from mien_server.settings import Settings

CONNECTION_BYTES = 64 * 1024
"""Of an idle connection, as measured, with room to spare."""


def worst_case(settings: Settings, connections: int) -> dict[str, int]:
    """Bytes that calls and connections may hold at worst, by what they are.

    Args:
        connections: how many there may be.
    """
    calls = settings.max_pending_requests
    return {
        # Bytes that have not all come yet: up to a whole message each.
        "arriving": (settings.max_arriving_requests or calls) * settings.max_message_bytes,
        # A message, and the photo that is read from it.
        "requests": 2 * settings.max_pending_bytes,
        # Their pixels, and what decoders need beside those.
        "pictures": 2 * settings.decode_limits[1],
        # Canvases, crops and tensors that wait for a model.
        "queues": settings.queue_limits[1],
        "connections": connections * CONNECTION_BYTES,
    }
