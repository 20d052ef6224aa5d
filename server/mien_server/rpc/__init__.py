"""Servicers and interceptors, and the one map from errors to statuses."""
