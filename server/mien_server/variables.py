"""Which environment variables look like settings and are none."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping

_CLIENTS = frozenset({"MIEN_ADDRESS", "MIEN_API_KEY", "MIEN_TOKEN"})
"""What the SDK and the command `mien` read, in the same shell perhaps."""

# Kubernetes puts these into every pod for a Service whose name begins with "mien", unless it says
# enableServiceLinks: false.
_SERVICE_LINK = re.compile(
    r".*(_SERVICE_HOST|_SERVICE_PORT(_[A-Z0-9_]+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def unknown_variables(
    environment: Mapping[str, str], prefix: str, known: Collection[str]
) -> Iterator[str]:
    """What is wrong with the variables that begin like a setting's and set nothing, a line each.

    Args:
        environment: all variables. Empty ones count as unset.
        prefix: what a setting's variable begins with.
        known: the names of the settings' variables, in upper case.
    """
    for name, value in sorted(environment.items()):
        upper = name.upper()
        if not upper.startswith(prefix) or not value or upper in known or upper in _CLIENTS:
            continue
        linked = upper.endswith("_PORT") and _SERVICE_ADDRESS.match(value)
        if linked or _SERVICE_LINK.fullmatch(upper):
            continue
        close = difflib.get_close_matches(upper, known, n=1, cutoff=0.8)
        meant = f"did you mean {close[0]}?" if close else "the configuration page lists them all"
        yield f"{name}: no such setting; {meant}"
