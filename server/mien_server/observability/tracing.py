"""Whether calls are traced. Only if they are is OpenTelemetry imported."""

import logging
from typing import TYPE_CHECKING

from mien_server.errors import OperatorError

if TYPE_CHECKING:
    from mien_server.observability.spans import Tracing

logger = logging.getLogger(__name__)


def open_tracing(endpoint: str | None, ratio: float) -> "Tracing | None":
    """What makes spans of calls and sends them to a collector, if there is one; `close` must follow.

    Args:
        endpoint: http://host:port or https://host:port of a collector that takes OTLP over gRPC.
        ratio: of the calls whose caller leaves it to the server, how many are traced, in [0, 1].

    Raises:
        OperatorError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return None
    try:
        from mien_server.observability.spans import Tracing, collector
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"--otlp-endpoint (MIEN_OTLP_ENDPOINT): {error.name} is not installed: pip install"
            " 'mien[tracing]'"
        ) from error
    logger.info("tracing", extra={"to": endpoint, "ratio": ratio})
    return Tracing(collector(endpoint), ratio=ratio)
