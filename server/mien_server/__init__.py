"""mien's server: a gRPC inference server for faces. See docs/architecture.md for the tour."""
