"""`python -m tests.fuzz`: damaged photos and messages against servers of its own; `make fuzz`.

First against one that answers everybody, then against one whose callers prove who they are, over TLS. It
ends with 1 if a server did anything wrong: ended, answered by a status that docs/errors.md does not have,
by a defect, or long after a call's deadline, let in or kept out the wrong caller, logged a traceback, or
kept more and more memory. The requests that did it are in out/fuzz/, and come again with the same seed.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.run import fuzz
from tools.local_access import LocalAccess
from tools.local_server import local_server


def main() -> int:
    """Runs it.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser("fuzz", description=__doc__)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        wrong = [_run(each, options) for each in (None, LocalAccess(Path(folder)))]
    return 1 if any(wrong) else 0


def _run(access: LocalAccess | None, options: argparse.Namespace) -> bool:
    """Runs one of the two, prints what came of it, and says whether anything was wrong."""
    name = "authenticated" if access else "open"
    print(f"# {name}")
    flags = ["--access-log", "false"]
    if access:
        flags += [*access.key_flags, *access.tls_flags]
    log, trusted = options.out / f"{name}.log", access.trusted if access else None
    with (
        TemporaryDirectory() as galleries,
        local_server(log, flags=[*flags, "--gallery-dir", galleries], trusted=trusted) as server,
    ):
        report = fuzz(
            server,
            photos=options.photos,
            messages=options.messages,
            seed=options.seed,
            access=access,
        )
    for answer, count in report.answers.most_common():
        print(f"{count:7,} {answer}")
    print(f"slowest: {report.slowest[0]:.2f} s, {report.slowest[1]}")
    print(f"MiB at rest after each tenth: {' '.join(f'{mib:.0f}' for mib in report.resident)}")
    for call, request in report.inputs.items():
        (options.out / f"{call}.bin").write_bytes(request)
    for call, wrong in report.wrong.items():
        print(f"WRONG {call}: {wrong}")
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
