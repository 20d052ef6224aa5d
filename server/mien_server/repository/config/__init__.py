"""Reads `config.pbtxt`."""
