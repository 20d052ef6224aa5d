"""The commands of `mien-server`."""
