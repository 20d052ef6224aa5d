"""The families' networks in PyTorch. Only `Family.network` and backends import them."""
