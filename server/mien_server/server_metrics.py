"""The metrics of what the server consists of: read where it is, at each scrape."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from mien_server.access.setup import Access
from mien_server.observability.call_metrics import watch
from mien_server.observability.connections import connections
from mien_server.observability.model_metrics import ModelMetrics
from mien_server.rpc.intake import Intake
from mien_server.rpc.server import RpcServer

if TYPE_CHECKING:
    from mien_server.engine import Engine


def watch_server(
    registry: CollectorRegistry,
    server: RpcServer,
    intake: Intake,
    engine: "Engine",
    access: Access,
) -> None:
    """Adds the metrics of what is there once the server has been built."""
    galleries = engine.gallery.store if engine.gallery else None
    registry.register(ModelMetrics(engine.catalogue, galleries))
    watch(registry, "mien_ready", "1 if the health service says SERVING.", lambda: server.ready)
    watch(
        registry,
        "mien_calls_in_progress",
        "Calls admitted and not ended.",
        lambda: intake.budget.count,
    )
    watch(
        registry,
        "mien_calls_arriving",
        "Calls whose request is still on its way, and open streams.",
        lambda: intake.arriving,
    )
    watch(
        registry,
        "mien_health_checks_arriving",
        "Health checks whose request is still on its way.",
        lambda: intake.checking,
    )
    watch(
        registry,
        "mien_connections",
        "Connections of the gRPC port.",
        lambda: connections(server.address),
    )
    watch(
        registry,
        "mien_call_bytes_in_progress",
        "Bytes of their requests together.",
        lambda: intake.budget.nbytes,
    )
    watch(
        registry,
        "mien_decode_pending",
        "Photos that are being decoded or wait for it.",
        lambda: engine.pool.pending,
    )
    watch(
        registry,
        "mien_picture_bytes",
        "Bytes of photos that wait to be decoded, and of pixels that are not freed.",
        lambda: engine.pool.room.nbytes,
    )
    if access.certificate is not None:
        watch(
            registry,
            "mien_tls_certificate_days_left",
            "Days until the first of the server's certificates ends.",
            access.certificate.days_left,
        )
