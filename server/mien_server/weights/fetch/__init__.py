"""Gets weights from packages, hubs and addresses."""
