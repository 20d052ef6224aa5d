"""mien's server: a gRPC inference server for faces. See docs/architecture.md for the tour."""

import os

# From 1.32 on, onnxruntime on Linux records events of every session, gives the machine an identifier in the
# home folder, and sends both to its makers, unless this is set before it is imported.
# tests/integration/test_no_telemetry.py watches what it does.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
