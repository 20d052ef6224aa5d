"""Measures models: one version against its own golden file, and models against labelled photos.

`check` does the former by itself. For the latter `pairs` and `wider` read the data, `loaded` loads the models
and asks them, `verification` and `detection` turn the answers into figures (by `metrics` and
`precision_recall`), and `reports`, `roc_picture` and `calibration` show the figures or write them down.
"""
