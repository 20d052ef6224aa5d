"""Gets weights from published packages, model hubs and addresses; `sources` lists what mien ships."""
