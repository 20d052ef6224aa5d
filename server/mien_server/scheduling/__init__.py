"""Queues, batching policy and device executors. Knows nothing of gRPC, faces or torch."""
