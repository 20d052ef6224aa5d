"""The five-minute tour behind `make demo`: real photos, real weights, one local server.

Installs the models where they are missing, starts `mien-server`, draws what `mien detect` finds on
the six portraits, embeds each face once with the SDK and compares all fifteen pairs. Exits with 1
unless exactly the two same-person pairs match, with room on both sides of the threshold.
"""

import argparse
import io
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageOps

import mien
from mien.pictures import annotate
from samples.contact_sheet import PORTRAIT, Pair, Portrait, contact_sheet
from tools.local_server import LocalServer, ServerFailed, free_port, local_server

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DEFAULT_PORT = 8001
NAMES = ("person_a_1", "person_a_2", "person_b_1", "person_b_2", "impostor_1", "impostor_2")
SAME_PERSON = {(0, 1), (2, 3)}
SAME_AT_LEAST = 0.5
DIFFERENT_AT_MOST = 0.35


class DemoFailed(Exception):
    """The tour cannot go on, or did not show what it must."""


def main() -> int:
    """Runs the tour; the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--port", type=tcp_port, help=f"the server's (default: {DEFAULT_PORT}, or free)"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="where pictures go")
    options = parser.parse_args()
    os.chdir(ROOT)
    try:
        tour(options.port, options.out)
    except (DemoFailed, ServerFailed, mien.MienError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def tcp_port(text: str) -> int:
    """A TCP port from the command line.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port, 1 to 65535")
    return int(text)


def tour(wanted_port: int | None, out: Path) -> None:
    """The tour itself.

    Raises:
        DemoFailed: a command failed, or a pair is not as it must be.
        ServerFailed: the server did not start or stop well.
    """
    run("mien-server", "models", "install")
    out.mkdir(exist_ok=True)
    # Two tours at once share out/: each draws in a folder of its own, then moves the pictures.
    with tempfile.TemporaryDirectory(dir=out, prefix=".demo-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        server = stack.enter_context(serve(wanted_port, scratch / "server.log"))
        try:
            pairs = show(server, scratch, out)
        except (DemoFailed, mien.MienError) as error:
            log = server.log.read_text().splitlines()
            lines = [str(error), "", "The last lines of the server's log:", *log[-20:]]
            raise DemoFailed("\n".join(lines)) from error
        stack.close()
        for picture in sorted(scratch.glob("*.png")):
            picture.replace(out / picture.name)
    print(f"\nPictures: {out}/*.png, all together in {out}/demo.png")
    check(pairs)
    print(
        "To compare with IR-50 (arcface, 512 numbers a face) instead: bring its weights as\n"
        "docs/models.md says, then add --embedder arcface to `mien embed` and `mien verify`.\n"
        "For ages and expressions beside the quality of each face: mien-server models install age_gender"
        " expression"
    )


@contextmanager
def serve(wanted_port: int | None, log: Path) -> Iterator[LocalServer]:
    """A server on the wanted port or on one of its own.

    Raises:
        DemoFailed: the wanted port is taken.
        ServerFailed: the server did not start or stop well.
    """
    port = choose_port(wanted_port)
    with ExitStack() as stack:
        try:
            server = stack.enter_context(start(port, log))
        except ServerFailed:
            # Another tour may have taken the port between the choice and the start.
            other = wanted_port or choose_port(None)
            if other == port:
                raise
            server = stack.enter_context(start(other, log))
        yield server


@contextmanager
def start(port: int, log: Path) -> Iterator[LocalServer]:
    """A server on this port, in sight of the reader."""
    print(f"$ mien-server serve --grpc-port {port}", flush=True)
    began = time.monotonic()
    with local_server(log, port=port) as server:
        print(f"ready on {server.address} after {time.monotonic() - began:.1f} s\n")
        yield server


def choose_port(wanted: int | None) -> int:
    """The port to serve on: the wanted one, else 8001, else a free one.

    Raises:
        DemoFailed: the wanted port is taken.
    """
    port = wanted or DEFAULT_PORT
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        if wanted:
            raise DemoFailed(
                f"port {port} cannot be used ({error.strerror}); name another: make demo PORT=9001"
            ) from error
        free = free_port()
        print(f"port {port} is taken; using {free} (make demo PORT=9001 names one)\n")
        return free
    return port


def run(*command: str, drawn_in: Path | None = None, out: Path | None = None) -> None:
    """Runs one of mien's commands in sight of the reader.

    What it draws in the folder `drawn_in` is shown as being in `out`, where it ends up.

    Raises:
        DemoFailed: it failed; it has already said why.
    """
    shown = shlex.join(command).replace(str(drawn_in), str(out))
    print(f"$ {shown}", flush=True)
    program, *arguments = command
    pipe = subprocess.PIPE if drawn_in else None
    done = subprocess.run([BIN / program, *arguments], stdout=pipe, text=True, check=False)
    if done.returncode:
        raise DemoFailed(f"`{shown}` failed")
    print((done.stdout or "").replace(str(drawn_in), str(out)), flush=True)


def show(server: LocalServer, scratch: Path, out: Path) -> Mapping[tuple[int, int], Pair]:
    """Detect, Verify and Analyze by the CLI, Embed and all pairs by the SDK; draws in `scratch`."""
    os.environ["MIEN_ADDRESS"] = server.address
    photos = [Path("samples") / f"{name}.jpg" for name in NAMES]
    for photo in photos:
        picture = scratch / f"{photo.stem}.png"
        run("mien", "detect", str(photo), "--out", str(picture), drawn_in=scratch, out=out)
    run("mien", "verify", str(photos[0]), str(photos[1]))
    run("mien", "verify", str(photos[0]), str(photos[4]))
    for photo in photos:
        run("mien", "analyze", str(photo))

    with mien.Client(server.address, timeout=30) as client:
        embedded = [client.embed(photo) for photo in photos]
        results = {
            (a, b): client.verify(embedded[a].embedding, embedded[b].embedding)
            for a, b in combinations(range(len(photos)), 2)
        }
        portraits = [
            portrait(client, photo, result.faces[0])
            for photo, result in zip(photos, embedded, strict=True)
        ]
    pairs = {key: Pair(result.similarity, result.matched) for key, result in results.items()}
    threshold = results[0, 1].threshold
    print_table(pairs, threshold)

    models = [embedded[0].detector, embedded[0].embedder]
    named = " · ".join(f"{model.name} v{model.version}" for model in models if model)
    legend = ["mien", named, f"same person from a cosine of {threshold:.3f}"]
    contact_sheet(portraits, pairs, legend).save(scratch / "demo.png", optimize=True)
    return pairs


def portrait(client: mien.Client, photo: Path, face: mien.Face) -> Portrait:
    """A photo for the contact sheet: annotated at the size it has there, and its face cut out."""
    if face.box is None:
        raise DemoFailed(f"{photo} came back without a box")
    side = max(face.box.width, face.box.height) * 1.15
    x, y = (face.box.x1 + face.box.x2) / 2, (face.box.y1 + face.box.y2) / 2
    with Image.open(photo) as picture:
        rgb = picture.convert("RGB")
    encoded = io.BytesIO()
    ImageOps.fit(rgb, PORTRAIT).save(encoded, "PNG")
    small = encoded.getvalue()
    annotated = annotate(small, client.detect(small).faces)
    cut = rgb.crop((x - side / 2, y - side / 2, x + side / 2, y + side / 2))
    return Portrait(photo.stem, annotated, cut)


def print_table(pairs: Mapping[tuple[int, int], Pair], threshold: float) -> None:
    """All pairs with similarity and verdict."""
    print(f"Every pair, embedded once and compared by the SDK; a match from {threshold:.3f} on:\n")
    for (a, b), pair in pairs.items():
        verdict = "same person" if pair.matched else "different"
        print(f"  {NAMES[a]:<12}{NAMES[b]:<12}{pair.similarity:6.2f}  {verdict}")


def check(pairs: Mapping[tuple[int, int], Pair]) -> None:
    """Whether the tour shows what it must.

    Raises:
        DemoFailed: names the pairs that are not as they must be.
    """
    wrong: Sequence[str] = [
        f"{NAMES[a]} and {NAMES[b]}: {pair.similarity:.2f}"
        for (a, b), pair in pairs.items()
        if not (
            pair.matched and pair.similarity >= SAME_AT_LEAST
            if (a, b) in SAME_PERSON
            else not pair.matched and pair.similarity <= DIFFERENT_AT_MOST
        )
    ]
    if wrong:
        raise DemoFailed(f"these pairs are not as they must be: {'; '.join(wrong)}")


if __name__ == "__main__":
    sys.exit(main())
