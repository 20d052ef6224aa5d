"""Where `mien-server` begins: the SDK's distribution has this command, too, but not what it needs."""

import os
import sys


def main() -> int:
    """Runs `mien_server.commands.main`, or says what to install for it; the exit status."""
    # The scheduler shares out the cores: numpy's own threads beside it would get in each other's way. BLAS
    # reads this once, when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from mien_server.commands import main as commands
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "mien_server":
            raise
        print(
            f"mien-server: {error.name} is not installed. This is mien's SDK alone; the server is an"
            " extra of it: pip install 'mien[server]', or '.[server]' from a checkout.",
            file=sys.stderr,
        )
        return 1
    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
