"""Triton's own protocol, in front of the same slots as the face calls."""
