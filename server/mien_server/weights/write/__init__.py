"""Writes version folders and their configurations."""
