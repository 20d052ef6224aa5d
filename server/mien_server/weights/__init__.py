"""Checkpoints in: sources, formats, key maps, checksums."""
