"""Server reflection under both of its names."""

from collections.abc import Iterable

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1 = "grpc.reflection.v1.ServerReflection"


def add_reflection(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Serves reflection of these services, as v1 and as v1alpha.

    Newer clients ask for v1, grpcio-reflection has v1alpha alone, and their messages are the same to the
    byte. v1 is not among the services that are listed, since its descriptors are not there to be shown.
    """
    servicer = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
            for name in (reflection.SERVICE_NAME, V1)
        )
    )
