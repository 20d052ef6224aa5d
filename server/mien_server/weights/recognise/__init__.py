"""Which network a checkpoint holds, and its weights as data."""
