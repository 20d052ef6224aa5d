"""Leases for calls that can wait: a model that is asleep is loaded for them first."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol

from mien_server.errors import MienError, ModelAsleep, ModelNotReady
from mien_server.models.interface import AnyRole
from mien_server.repository.versions import Lease


class Wakeable(Protocol):
    """Where models are leased, and woken: the catalogue."""

    def lease(
        self, name: str, version: int, *, role: AnyRole | None, fingerprint: str
    ) -> AbstractContextManager[Lease]:
        """As `Catalogue.lease`."""
        ...

    def wake(self, name: str) -> Future[None]:
        """As `Loader.wake`."""
        ...


@contextlib.asynccontextmanager
async def hold(
    models: Wakeable,
    name: str,
    version: int = 0,
    *,
    role: AnyRole | None = None,
    fingerprint: str = "",
) -> AsyncIterator[Lease]:
    """As `Catalogue.lease`, but a model that is asleep is loaded, which the caller waits for.

    Whoever holds models already goes on holding them meanwhile, so that none falls asleep over another one.
    A call whose deadline passes is cancelled out of the wait; the load goes on.

    Raises:
        ModelNotFound, InvalidRequest: as `lease` says. ModelNotReady: also of a load that failed.
        Draining: the server is shutting down.
    """
    failure: MienError | None = None
    with contextlib.ExitStack() as held:
        while True:
            try:
                lease = held.enter_context(
                    models.lease(name, version, role=role, fingerprint=fingerprint)
                )
                break
            except ModelAsleep:
                if failure:
                    raise ModelNotReady(failure.message) from failure
            try:
                await asyncio.wrap_future(models.wake(name))
            except MienError as error:
                failure = error
        yield lease
