"""Load a version of a model onto a device and run batches of it."""
