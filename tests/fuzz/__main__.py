"""`python -m tests.fuzz`: damaged photos and messages against a server of its own; `make fuzz`.

It ends with 1 if the server did anything wrong: ended, answered by a status that docs/errors.md does not
have, by a defect, or long after a call's deadline, logged a traceback, or kept more and more memory. The
requests that brought that about are in out/fuzz/, and come again with the same seed.
"""

import argparse
import sys
from pathlib import Path

from tests.fuzz.run import fuzz
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
    with local_server(options.out / "server.log", flags=["--access-log", "false"]) as server:
        report = fuzz(server, photos=options.photos, messages=options.messages, seed=options.seed)
    for answer, count in report.answers.most_common():
        print(f"{count:7,} {answer}")
    print(f"slowest: {report.slowest[0]:.2f} s, {report.slowest[1]}")
    print(f"MiB at rest after each tenth: {' '.join(f'{mib:.0f}' for mib in report.resident)}")
    for name, request in report.inputs.items():
        (options.out / f"{name}.bin").write_bytes(request)
    for name, wrong in report.wrong.items():
        print(f"WRONG {name}: {wrong}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
