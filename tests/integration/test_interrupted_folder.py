"""Many are enrolled once each, though their command is interrupted three times, or their server killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mien
from tests.conftest import LaunchServer
from tools.local_server import LocalServer, ServerFailed, free_port, local_server

PERSONS, PHOTOS, AT_A_TIME = 100, 20, 8


def generated(folder: Path) -> Path:
    """Crops of noise: what they show is not the subject, and as crops nothing has to be detected."""
    numbers = np.random.default_rng(1)
    for person in range(PERSONS):
        (folder / f"p{person:03}").mkdir(parents=True)
        for photo in range(PHOTOS):
            pixels = numbers.integers(0, 256, (112, 112, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"p{person:03}" / f"{person:03}-{photo:02}.png")
    return folder


class Terminal:
    """What a command writes to the terminal that its standard error is."""

    def __init__(self) -> None:
        self._reader, self.writer = os.openpty()
        self._told = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._reader, 1 << 16)
            except OSError:  # nobody has the other end any more
                return
            self._told += part

    def close(self) -> str:
        """All that was written."""
        os.close(self.writer)
        self._thread.join(30)
        os.close(self._reader)
        return self._told.decode(errors="replace")


@pytest.mark.long
@pytest.mark.timeout(600)  # a minute, where nothing else has the cores
def test_interrupted_folder_is_enrolled_once(launch_server: LaunchServer, tmp_path: Path) -> None:
    folder = generated(tmp_path / "photos")
    with (
        launch_server("--gallery-dir", str(tmp_path / "galleries")) as server,
        mien.Client(server.address, timeout=60) as client,
    ):
        gallery = client.gallery("many")
        gallery.create()

        def add(after: int, interrupt: signal.Signals | None) -> tuple[int, str, str, int]:
            terminal = Terminal()
            command = [sys.executable, "-m", "mien", "gallery", "add", "many", str(folder)]
            with subprocess.Popen(
                [*command, "--aligned", "--quality", "accept", "--address", server.address],
                stdout=subprocess.PIPE,
                stderr=terminal.writer,
                text=True,
                env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
            ) as process:
                try:
                    while interrupt is not None and gallery.info().faces < after:
                        assert process.poll() is None
                        time.sleep(0.01)
                    if interrupt is not None:
                        process.send_signal(interrupt)
                    output, _ = process.communicate(timeout=300)
                finally:
                    process.kill()
            return process.returncode, output, terminal.close(), gallery.info().faces

        status, output, shown, faces = add(300, signal.SIGINT)
        assert status == 130
        assert "interrupted; the same command goes on" in shown
        assert re.fullmatch(r"\d+ enrolled, 0 enrolled before, 0 refused\n", output)
        assert 300 <= faces < 900
        status, _, _, faces = add(900, signal.SIGKILL)
        assert status == -signal.SIGKILL
        assert 900 <= faces < 1500
        status, _, _, faces = add(1500, signal.SIGTERM)
        assert status == -signal.SIGTERM
        assert 1500 <= faces < 2000
        status, output, shown, faces_after = add(0, None)
        assert status == 0
        told = re.fullmatch(r"(\d+) enrolled, (\d+) enrolled before, 0 refused\n", output)
        assert told is not None
        enrolled, before = map(int, told.groups())
        assert enrolled + before == 2000
        assert faces <= before <= faces + AT_A_TIME  # what was in progress may have been enrolled
        assert "2000/2000" in shown
        assert "a second" in shown
        assert faces_after == 2000
        there = [(face.person, face.labels["file"]) for face in gallery.faces()]
        expected = {(path.parent.name, path.name) for path in folder.glob("*/*")}
        assert set(Counter(there).values()) == {1}
        assert set(there) == expected
        assert {person.faces for person in gallery.persons()} == {PHOTOS}


@pytest.mark.long
def test_server_that_is_killed_and_started_again_has_each_face_once(
    model_repository_path: Path, tmp_path: Path
) -> None:
    port = free_port()
    flags = ["--model-repository", str(model_repository_path)]
    flags += ["--gallery-dir", str(tmp_path / "galleries")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MIEN_")}

    def start(stack: ExitStack) -> LocalServer:
        log = tmp_path / "server.log"
        return stack.enter_context(
            local_server(log, port=port, flags=flags, environment=environment)
        )

    with ExitStack() as first, ExitStack() as second, mien.Client(f"127.0.0.1:{port}") as client:
        server = start(first)
        gallery = client.gallery("many")
        model = gallery.create().embedder
        numbers = np.random.default_rng(2)
        again = threading.Thread(target=start, args=(second,), daemon=True)

        def faces() -> Iterator[mien.NewFace]:
            for i in range(2000):
                if i == 1000:
                    server.process.kill()
                    with suppress(ServerFailed):  # for it has not left as it should
                        first.close()
                    again.start()
                values = numbers.standard_normal(128)
                embedding = mien.Embedding(values / np.linalg.norm(values), 9.0, model)
                yield mien.NewFace(embedding, f"p{i % 7}", {"n": str(i)})

        outcomes = list(gallery.enrol_many(faces(), quality_policy="accept", timeout=30))
        again.join()
        assert [each.index for each in outcomes if each.error is None] == list(range(2000))
        there = Counter(face.labels["n"] for face in gallery.faces())
        assert there == Counter(map(str, range(2000)))
