"""Servers whose galleries are in a real Milvus: several on one, and one whose Milvus goes and comes back."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import mien
from mien_server.gallery.milvus_tables import LOOK_SECONDS
from tests.conftest import LaunchServer
from tests.milvus_rig import running_milvus
from tools.local_server import LocalServer
from tools.milvus import Milvus, site

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

Sample = Callable[[str], Path]
_NAMES = count(1)
_AWAY_SECONDS = 120.0
"""How long a Milvus may take to serve again after a start, on a busy machine."""


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    with (
        running_milvus(tmp_path_factory.mktemp("milvus")) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(site()))))
        patch.setenv("PYTHONPATH", path)
        yield running


@pytest.fixture(scope="module")
def servers(milvus: Milvus, launch_server: LaunchServer) -> Iterator[list[LocalServer]]:
    """Two on one Milvus."""
    with ExitStack() as stack:
        launched = [launch_server("--gallery-url", milvus.url) for _ in range(2)]
        yield [stack.enter_context(each) for each in launched]


@pytest.fixture(scope="module")
def clients(servers: list[LocalServer]) -> Iterator[list[mien.Client]]:
    with ExitStack() as stack:
        made = [mien.Client(each.address, timeout=60) for each in servers]
        yield [stack.enter_context(each) for each in made]


@pytest.fixture(scope="module")
def model(clients: list[mien.Client], sample: Sample) -> mien.ModelIdentity:
    return clients[0].embed(sample("person_a_1")).embedding.model


def somebody(model: mien.ModelIdentity, seed: int) -> mien.Embedding:
    values = np.random.default_rng(seed).standard_normal(128)
    return mien.Embedding(values / np.linalg.norm(values), 9.0, model)


def eventually(ask: Callable[[], object], seconds: float) -> float:
    """Asks until it raises nothing; how long that took."""
    began = time.monotonic()
    while True:
        try:
            ask()
        except mien.MienError:
            if time.monotonic() - began > seconds:
                raise
            time.sleep(0.1)
        else:
            return time.monotonic() - began


def test_two_servers_see_each_others_enrolments(
    clients: list[mien.Client], sample: Sample, model: mien.ModelIdentity
) -> None:
    name = f"shared-{next(_NAMES)}"
    here, there = (client.gallery(name) for client in clients)
    here.create(threshold=0.5)
    assert eventually(there.info, 30) < 10 * LOOK_SECONDS
    assert here.enrol(sample("person_a_1"), "a").outcome == "enrolled"
    for seed in range(5):
        writer, reader = (here, there) if seed % 2 else (there, here)
        result = writer.enrol(somebody(model, seed), f"p{seed}", quality_policy="accept")
        # At once, without a wait: a change is told when every server sees it.
        found = reader.identify(somebody(model, seed))
        assert found.best is not None
        assert (found.best.person, found.best.samples[0].face_id) == (f"p{seed}", result.face_id)
        reader.move(result.face_id, "moved")
        assert [m.person for m in writer.identify(somebody(model, seed)).persons] == ["moved"]
        assert reader.delete_faces(result.face_id).erased is False
        assert writer.identify(somebody(model, seed)).best is None
    assert [
        match.person for match in there.identify(sample("person_a_2"), threshold=0.3).persons
    ] == ["a"]
    there.delete()
    with pytest.raises(mien.NotInGallery):
        here.enrol(somebody(model, 1), "late", quality_policy="accept")


def test_same_request_at_both_servers_enrols_once(
    clients: list[mien.Client], model: mien.ModelIdentity
) -> None:
    name = f"twice-{next(_NAMES)}"
    clients[0].gallery(name).create(threshold=0.5)
    eventually(clients[1].gallery(name).info, 30)
    results: dict[tuple[int, int], str] = {}

    def enrol(which: int) -> None:
        for seed in range(10):
            result = (
                clients[which]
                .gallery(name)
                .enrol(
                    somebody(model, seed),
                    f"p{seed}",
                    request_key=f"k{seed}",
                    quality_policy="accept",
                )
            )
            results[which, seed] = result.face_id

    threads = [threading.Thread(target=enrol, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faces = {face.face_id for face in clients[0].gallery(name).faces()}
    assert len(faces) == 10
    assert faces == set(results.values())
    clients[0].gallery(name).delete()


def test_milvus_killed_under_load_loses_nothing_and_disturbs_no_face_call(
    milvus: Milvus, clients: list[mien.Client], sample: Sample, model: mien.ModelIdentity
) -> None:
    gallery = clients[0].gallery(f"kill-{next(_NAMES)}")
    gallery.create(threshold=0.5)
    photo = sample("person_a_1").read_bytes()
    ended = threading.Event()
    acknowledged: dict[str, str] = {}
    refused: list[mien.MienError] = []
    slowest = [0.0]
    wrong: list[BaseException] = []

    def write(which: int) -> None:
        for number in count():
            if ended.is_set():
                return
            key = f"{which}-{number}"
            face = somebody(model, 1000 * which + number)
            while not ended.is_set():
                try:
                    result = gallery.enrol(face, key, request_key=key, quality_policy="accept")
                except mien.Unavailable as error:
                    refused.append(error)
                    time.sleep(0.2)
                else:
                    acknowledged[key] = result.face_id
                    break

    def detect() -> None:
        while not ended.is_set():
            began = time.monotonic()
            assert len(clients[1].detect(photo).faces) == 1
            slowest[0] = max(slowest[0], time.monotonic() - began)

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                wrong.append(error)

        return run

    work = [guarded(lambda which=which: write(which)) for which in range(3)]  # type: ignore[misc]
    threads = [threading.Thread(target=each) for each in (*work, guarded(detect))]
    for thread in threads:
        thread.start()
    time.sleep(5)
    milvus.kill()
    time.sleep(3)
    with pytest.raises(mien.Unavailable) as caught:
        gallery.identify(somebody(model, 1))
    assert caught.value.reason == "GALLERY_UNAVAILABLE"
    began = time.monotonic()
    with pytest.raises(mien.Unavailable):
        gallery.info(timeout=5)
    assert time.monotonic() - began < 5
    before = len(acknowledged)
    milvus.start()
    eventually(lambda: gallery.identify(somebody(model, 1)), _AWAY_SECONDS)
    time.sleep(3)
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert refused
    assert slowest[0] < 5
    assert len(acknowledged) > before > 0
    there = {face.face_id: face.person for face in gallery.faces()}
    assert {face_id: key for key, face_id in acknowledged.items()}.items() <= there.items()
    assert len(set(there.values())) == len(there)
    # Who gave up at the end, without an answer, is at most one for each writer.
    assert len(there) <= len(acknowledged) + 3
    gallery.delete()


def test_milvus_that_hangs_holds_up_nobody_beyond_a_deadline(
    milvus: Milvus, clients: list[mien.Client], sample: Sample, model: mien.ModelIdentity
) -> None:
    gallery = clients[0].gallery(f"hang-{next(_NAMES)}")
    gallery.create(threshold=0.5)
    gallery.enrol(somebody(model, 1), "p1", quality_policy="accept")
    milvus.signal(signal.SIGSTOP)
    try:
        photo = sample("person_a_1").read_bytes()

        def ask(number: int) -> float:
            began = time.monotonic()
            with pytest.raises((mien.Unavailable, mien.DeadlineExceeded)):
                gallery.identify(somebody(model, number), timeout=3)
            return time.monotonic() - began

        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(ask, number) for number in range(40)]
            for _ in range(5):
                began = time.monotonic()
                assert len(clients[0].detect(photo).faces) == 1
                assert time.monotonic() - began < 3
            assert max(each.result() for each in asked) < 6
    finally:
        milvus.signal(signal.SIGCONT)
    eventually(lambda: gallery.identify(somebody(model, 1)), _AWAY_SECONDS)
    assert [match.person for match in gallery.identify(somebody(model, 1)).persons] == ["p1"]
    gallery.delete()


def test_server_starts_without_its_milvus(
    milvus: Milvus, launch_server: LaunchServer, sample: Sample
) -> None:
    milvus.kill()
    with (
        launch_server("--gallery-url", milvus.url) as running,
        mien.Client(running.address, timeout=30) as client,
    ):
        assert len(client.detect(sample("person_a_1")).faces) == 1
        gallery = client.gallery(f"late-{next(_NAMES)}")
        with pytest.raises(mien.Unavailable):
            gallery.create()
        milvus.start()
        eventually(lambda: gallery.create(threshold=0.3), _AWAY_SECONDS)
        gallery.enrol(sample("person_a_1"), "a")
        assert [match.person for match in gallery.identify(sample("person_a_2")).persons] == ["a"]
        gallery.delete()
