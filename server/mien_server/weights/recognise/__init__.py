"""Tells which network a checkpoint holds, and reads its weights as data; nothing of a file is executed."""
