"""Network definitions, and the pre- and post-processing of each model family."""
