"""What every call passes: who is it, and may it do that?"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mien_server.access.callers import ANONYMOUS, CALLER, Caller
from mien_server.access.keyring import Keyring
from mien_server.access.keys import PREFIX
from mien_server.access.limits import CallerLimits
from mien_server.access.roles import METHODS, OPEN
from mien_server.errors import PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from mien_server.access.tokens import Tokens

HEADER = "authorization"
_SCHEME = "bearer "

# One message for all that is wrong with a key or token: it must not tell which ids there are.
_WRONG = "The key or token is not valid, or no longer. Ask the operator of the server for another."
_MISSING = (
    "This server answers only callers that it knows: send the metadata authorization: Bearer KEY (in the"
    " SDK api_key=, for the command mien --api-key-file), or use a client certificate that it knows."
)

Names = Callable[[], Iterable[str]]
"""Gives the names in the client's certificate, which TLS has verified; none if there is no certificate."""


class Gate:
    """Knows callers, and refuses what they may not do. Used from the event loop only.

    Args:
        keyring: the API keys and the names of certificates, or None.
        tokens: the tokens of others, or None. Without either nobody has to prove anything.
        limits: how much each caller may ask for; None: no caller has limits of its own.

    Attributes:
        closed: whether callers have to prove who they are.
        limits: as given.
    """

    def __init__(
        self,
        keyring: Keyring | None = None,
        tokens: "Tokens | None" = None,
        limits: CallerLimits | None = None,
    ) -> None:
        self._keyring = keyring
        self._tokens = tokens
        self.limits = limits
        self.closed = keyring is not None or tokens is not None

    async def admit(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], names: Names
    ) -> Caller:
        """Admits a call, or a message of a stream, and makes its caller this task's `CALLER`.

        Args:
            method: its path, /package.Service/Method.
            metadata: what came with it.
            names: of the client's certificate.

        Raises:
            Unauthenticated: nobody that is known. PermissionDenied: a caller that may not do this.
        """
        if not self.closed or (needed := METHODS.get(method)) == OPEN:
            return ANONYMOUS
        # Whatever this task was told of before does not hold any more: the key may have been revoked.
        CALLER.set(ANONYMOUS)
        caller = await self._who(metadata, names)
        CALLER.set(caller)
        if needed not in caller.roles:
            lacks = f"needs the role {needed}" if needed else "is open to nobody"
            raise PermissionDenied(
                f"{caller.name} may not call {method}: it {lacks}, and {caller.name} has"
                f" {', '.join(sorted(caller.roles)) or 'no role'}."
            )
        return caller

    async def _who(self, metadata: Iterable[tuple[str, str | bytes]], names: Names) -> Caller:
        sent = [value for key, value in metadata if key == HEADER]
        if not sent:
            return self._of_certificate(names)
        if len(sent) > 1 or not isinstance(value := sent[0], str):
            raise Unauthenticated(_WRONG)
        if value[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated(f"The metadata {HEADER} must be: Bearer KEY.")
        credential = value[len(_SCHEME) :].strip()
        caller = None
        if credential.startswith(PREFIX):
            if self._keyring is not None:
                caller = self._keyring.known(credential) or await self._keyring.find(credential)
        elif self._tokens is not None:
            caller = self._tokens.find(credential)
        if caller is None:
            raise Unauthenticated(_WRONG)
        return caller

    def _of_certificate(self, names: Names) -> Caller:
        if not (given := tuple(names())):
            raise Unauthenticated(_MISSING)
        caller = None if self._keyring is None else self._keyring.of_certificate(given)
        if caller is None:
            raise Unauthenticated(
                "No name in the client certificate is known here: the operator of the server allows one with"
                " `mien-server keys create NAME --certificate`."
            )
        return caller
