"""Imports gRPC so that it writes nothing to standard error: what goes wrong is in the exceptions.

gRPC reads the variable once, as it is imported. Where the application has set it, or has imported gRPC before
mien, that holds.
"""

import os

VARIABLE = "GRPC_VERBOSITY"

if VARIABLE not in os.environ:
    os.environ[VARIABLE] = "NONE"
    import grpc  # noqa: F401

    del os.environ[VARIABLE]
