"""`python -m tests.soak`: a server under load for long, while everything about it is changed; `make soak`.

It ends with 1 if a good call was lost, another one ended as none may, the memory of a rest after the first
sixth was more than 2 % from what it mostly was (if it lasts more than 10 minutes), threads or descriptors
grew, or the server logged a traceback or ended. In out/soak/ are a picture, the tables and the server's log.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from mien_server.load.report import machine, table
from tests.soak.picture import draw
from tests.soak.run import SETTLED, Soak, prepared, soak
from tools.local_access import LocalAccess
from tools.local_server import local_server

SOURCE = Path(__file__).resolve().parents[2] / "model_repository"


def tables(found: Soak) -> str:
    """What came of it, as Markdown."""
    rests = [
        (f"{each.minutes:.1f}", f"{each.mib:.0f}", each.threads, each.descriptors)
        for each in found.rests
    ]
    later = [each.mib for each in found.rests[SETTLED - 1 :]] or [0.0]
    parts = [
        table(("minutes", "MiB at rest", "threads", "descriptors"), rests),
        f"MiB at rest after the first sixth: {min(later):.0f} to {max(later):.0f}",
        table(("calls", "count"), found.tallied.answers.most_common()),
        table(("changes", "count"), sorted(found.changes.items())),
    ]
    return "\n\n".join(parts)


def main() -> int:
    """Runs it.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser("soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=12, help="calls a second [12]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        repository = prepared(SOURCE, Path(name) / "models")
        access = LocalAccess(Path(name))
        flags = [
            *("--model-repository", str(repository)),
            *("--model-control-mode", "explicit", "--load-model", "*"),
            *access.key_flags,
            *access.tls_flags,
        ]
        log = options.out / "server.log"
        with local_server(log, flags=flags, trusted=access.trusted) as server:
            found = asyncio.run(
                soak(
                    server,
                    access,
                    repository,
                    seconds=60 * options.minutes,
                    rate=options.rate,
                    seed=options.seed,
                )
            )
    told = tables(found)
    (options.out / "soak.md").write_text(f"{machine()}\n\n{told}\n")
    (options.out / "soak.svg").write_text(
        draw(found, f"{options.minutes:g} minutes at {options.rate:g} calls a second")
    )
    print(f"\n{told}\n")
    wrong = found.judged()
    for each in wrong:
        print(f"WRONG {each}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
