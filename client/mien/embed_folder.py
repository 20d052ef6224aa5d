"""`mien embed FOLDER --out FILE`: the embeddings of a folder, which goes on where it was interrupted.

What is done stands in FILE.partial until all of it is: one line of JSON for each photo, appended as it is
answered. A line that an interruption has cut is dropped, and its photo embedded again.
"""

import argparse
import base64
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np

from mien.client import Client
from mien.embedding_files import Row, Rows, checked_target, write
from mien.errors import FailedPrecondition, InvalidRequest
from mien.messages import FacePolicy
from mien.photo_folders import photos_in
from mien.progress import PARTLY, Progress, Tally, give_time, resumable
from mien.results import EmbedResult, ModelIdentity

_FORMAT = {"format": "mien-embed", "version": 1}


def embed_folder(client: Client, arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 3 if a photo has failed.

    Raises:
        MienError: what would go wrong with every photo, or that none could be embedded.
        OSError: a file cannot be written. ImportError: pyarrow is missing.
    """
    folder, out = Path(arguments.photo), arguments.out
    checked_target(out)
    give_time(client, arguments)
    photos = photos_in(folder)
    tally = Tally()
    options = {key: getattr(arguments, key) for key in ("all", "aligned", "detector", "embedder")}
    with _Journal(out.with_name(f"{out.name}.partial"), folder, options) as journal:
        left = [photo for photo in photos if not journal.has(photo)]
        tally.counts["before"] = len(photos) - len(left)
        embedded = client.embed_many(
            left,
            concurrency=arguments.concurrency,
            ordered=False,
            aligned=arguments.aligned,
            policy=FacePolicy.ALL if arguments.all else FacePolicy.LARGEST,
            detector=arguments.detector,
            embedder=arguments.embedder,
        )
        bar = Progress(len(photos), "photos", quiet=arguments.json)
        with resumable(), closing(embedded), bar as progress:
            progress.step(items=tally.counts["before"])
            for outcome in embedded:
                if outcome.error is None:
                    journal.add(outcome.item, outcome.get())
                    tally.counts["now"] += 1
                else:
                    tally.fail(outcome.item, outcome.error)
                progress.step(len(tally.failed))
        rows = journal.rows(photos)
        if rows is not None:
            write(out, rows)
    journal.path.unlink()
    faces = rows.count if rows else 0
    if arguments.json:
        told = {"photos": len(photos) - len(tally.failed), "faces": faces, "failed": tally.failed}
        print(json.dumps({"out": str(out) if rows else None, **told}))
    else:
        print(
            f"{len(photos)} photos: {tally.counts['now']} embedded, {tally.counts['before']} before,"
            f" {len(tally.failed)} failed; {faces} faces" + (f" in {out}" if rows else "")
        )
        for line in tally.lines():
            print(line)
    if rows is None:
        reason = tally.failed[0]["reason"] if tally.failed else "FACE_NOT_FOUND"
        raise FailedPrecondition("there is no face to write", reason=reason)
    return PARTLY if tally.failed else 0


class _Journal:
    """What is done, as a file that is only ever appended to.

    Args:
        path: of the file; it is made if it is not there.
        folder: that the photos are in.
        options: what the embeddings depend on.

    Raises:
        InvalidRequest: the file is of another command, or of other options.
    """

    def __init__(self, path: Path, folder: Path, options: dict[str, Any]) -> None:
        self.path = path
        self._folder = folder
        self._done: dict[str, dict[str, Any]] = {}
        self._model: dict[str, Any] | None = None
        head = {**_FORMAT, "options": options}
        self._file = path.open("a+b")
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break  # an interruption has cut it
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise self._foreign() from error
            if number == 0 and entry != head:
                raise self._foreign()
            if number:
                self._note(entry)
            whole += len(line)
        self._file.truncate(whole)
        if not whole:
            self._append(head)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, photo: Path) -> bool:
        """Whether the photo is done, and is as it was then."""
        entry = self._done.get(self._name(photo))
        return entry is not None and entry["stamp"] == _stamp(photo)

    def add(self, photo: Path, result: EmbedResult) -> None:
        """Notes what a photo has come to.

        Raises:
            FailedPrecondition: the model is another one than before.
        """
        faces = []
        for face in result.faces:
            if face.embedding is None:
                continue
            values = face.embedding.values.astype("<f4").tobytes()
            faces.append(
                {
                    "score": face.score,
                    "box": face.box.as_list() if face.box else [float("nan")] * 4,
                    "norm": face.embedding.norm,
                    "values": base64.b64encode(values).decode(),
                }
            )
        model = result.embedder.as_dict()
        entry = {"photo": self._name(photo), "stamp": _stamp(photo), "faces": faces, "model": model}
        self._note(entry)
        self._append(entry)

    def rows(self, photos: list[Path]) -> Rows | None:
        """The faces of these photos as far as they are done, in their order; None if there is none."""
        entries = [self._done[name] for name in map(self._name, photos) if name in self._done]
        count = sum(len(entry["faces"]) for entry in entries)
        if self._model is None or not count:
            return None

        def each() -> Iterator[Row]:
            for entry in entries:
                # What is no UTF-8 could not be written.
                name = entry["photo"].encode(errors="surrogateescape").decode(errors="replace")
                for number, face in enumerate(entry["faces"]):
                    values = np.frombuffer(base64.b64decode(face["values"]), "<f4")
                    box = tuple(face["box"])
                    yield Row(name, number, face["score"], box, face["norm"], values)

        dimensions = len(next(each()).values)
        model = ModelIdentity(**self._model)
        return Rows(model, count, dimensions, each)

    def _name(self, photo: Path) -> str:
        return photo.relative_to(self._folder).as_posix()

    def _note(self, entry: dict[str, Any]) -> None:
        self._model = self._model or entry["model"]
        if entry["model"]["fingerprint"] != self._model["fingerprint"]:
            raise FailedPrecondition(
                f"the server's embedder is {ModelIdentity(**entry['model'])}, and what is done is of"
                f" {ModelIdentity(**self._model)}: name that with --embedder, or remove {self.path} and begin"
                " again",
                reason="EMBEDDING_MISMATCH",
            )
        self._done[entry["photo"]] = entry

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def _foreign(self) -> InvalidRequest:
        self._file.close()
        return InvalidRequest(
            f"{self.path} was begun with other options: repeat those, or remove it and begin again",
            reason="FILE_ERROR",
        )


def _stamp(photo: Path) -> list[int]:
    """What changes when a photo does: its size in bytes, and when it was written."""
    status = photo.stat()
    return [status.st_size, status.st_mtime_ns]
