"""A folder of photos, enrolled in a gallery: each folder in it is a person; adding it again adds nothing."""

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from mien import cli_options
from mien.errors import DeadlineExceeded, InvalidRequest, MienError, Overloaded, Unavailable
from mien.gallery import Gallery
from mien.gallery_messages import QualityPolicyLike
from mien.gallery_results import EnrolResult, NewFace
from mien.images import read_file
from mien.messages import ModelLike

TRIES = 5
PAUSE = 1.0


def photos_of(folder: Path) -> list[tuple[str, Path]]:
    """The photos of a folder's folders, each with the name of its person, in order.

    Raises:
        InvalidRequest: it is no folder, or has no folders with photos.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder", reason="FILE_ERROR")
    found = [
        (path.relative_to(folder).parts[0], path)
        for path in sorted(folder.glob("*/**/*"))
        if path.suffix.lower() in cli_options.PICTURES and path.is_file()
    ]
    if not found:
        raise InvalidRequest(
            f"{folder} has no folders with photos: lay them out as {folder}/PERSON/PHOTO.jpg",
            reason="FILE_ERROR",
        )
    return found


def request_key(person: str, photo: bytes) -> str:
    """What a photo of a person is known by, so that adding it again adds nothing."""
    return hashlib.blake2b(
        photo, key=hashlib.sha256(person.encode()).digest(), digest_size=20
    ).hexdigest()


def enrol_photos(
    gallery: Gallery,
    photos: Sequence[tuple[str, Path]],
    *,
    quality_policy: QualityPolicyLike,
    detector: ModelLike | None,
    concurrency: int,
) -> Iterator[tuple[tuple[str, Path], EnrolResult | MienError]]:
    """Enrols photos, several at a time; what became of each, as they end.

    Raises:
        MienError: what is wrong is wrong with all of them.
    """

    def enrol(person: str, path: Path) -> EnrolResult | MienError:
        try:
            photo = read_file(path)
        except OSError as error:
            return InvalidRequest(f"{error.strerror}", reason="FILE_ERROR")
        face = NewFace(photo, person, {"file": path.name[:200]}, request_key(person, photo))
        for attempt in range(1, TRIES + 1):
            try:
                (result,) = gallery.enrol_faces(
                    [face], quality_policy=quality_policy, detector=detector
                )
            except InvalidRequest as error:
                return error
            except (Overloaded, Unavailable, DeadlineExceeded) as error:
                # The photo has a request key: whatever became of this try, another does no harm.
                if attempt == TRIES:
                    raise
                time.sleep(error.retry_after or PAUSE)
            else:
                return result
        raise AssertionError("the last try ends above")

    running: dict[Future[EnrolResult | MienError], tuple[str, Path]] = {}
    left = iter(photos)
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while len(running) < 2 * concurrency and (photo := next(left, None)):
                    running[pool.submit(enrol, *photo)] = photo
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()


class Progress:
    """A line on standard error that says how far it is, while that is a terminal."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total = total
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._done = 0
        self._told = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and self._done:
            print(file=sys.stderr)

    def step(self, *, refused: int) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if not self._shown or (now - self._told < 0.1 and self._done < self._total):
            return
        self._told = now
        rate = self._done / max(now - self._began, 1e-6)
        left = int((self._total - self._done) / rate)
        print(
            f"\r{self._done} of {self._total} photos, {rate:.1f} a second,"
            f" {left // 60}:{left % 60:02} left, {refused} refused ",
            end="",
            file=sys.stderr,
            flush=True,
        )
