"""Measures models: against their own golden file, and against labelled photos."""
