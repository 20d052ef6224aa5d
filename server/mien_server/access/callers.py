"""Who calls."""

from contextvars import ContextVar
from dataclasses import dataclass

from mien_server.access.roles import CallerRole


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has proved to be whom, and what that one may do.

    Attributes:
        name: who: what the operator called the key, the certificate's name, or the token's subject.
        roles: those included in others are in it, too.
        proof: what it was proved by: `key mien_…` without its secret, `certificate`, `token`; "" of nobody.
    """

    name: str
    roles: frozenset[CallerRole]
    proof: str = ""


ANONYMOUS = Caller("anonymous", frozenset(CallerRole))
"""Everybody, where nobody has to prove anything; and who has not proved anything, or not yet."""

CALLER: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)
"""The caller of the call that this task answers, for the lines of the log about it."""
