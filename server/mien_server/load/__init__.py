"""Load on anything that can be called: loops, shapes, statistics, and how they are shown."""
