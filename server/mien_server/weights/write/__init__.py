"""Writes version folders, whole or not at all, with golden files, and the configurations of new models."""
