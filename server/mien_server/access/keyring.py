"""Whose key, or whose certificate, that is. Used from the event loop only."""

import asyncio
import hashlib
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mien_server.access.callers import Caller
from mien_server.access.keys import Entry, is_secret_of, parse_key
from mien_server.access.roles import with_included


class Keyring:
    """The entries of the file of keys, and which keys have been found true.

    scrypt runs once for each key, on one thread of its own, and not again until the key's entry changes. What
    is remembered of a true key is a hash of it, under a secret of this process. Only keys that fit their id
    get as far as scrypt, so there are never more of them under way than there are entries.

    Args:
        entries: of the file.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._secret = secrets.token_bytes(32)
        self._entries: dict[str, Entry] = {}
        self._certificates: dict[str, Caller] = {}
        self._true: dict[bytes, tuple[Entry, Caller]] = {}
        self._under_way: dict[bytes, asyncio.Task[bool]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self.replace(entries)

    def replace(self, entries: Iterable[Entry]) -> None:
        """Takes other entries from now on. Keys whose entry is the same need no scrypt again."""
        valid = [entry for entry in entries if entry.revoked is None]
        self._entries = {entry.id: entry for entry in valid if entry.kind == "key"}
        self._certificates = {}
        for entry in valid:
            if entry.kind == "certificate":
                self._certificates.setdefault(entry.name, _caller(entry, "certificate"))
        self._true = {
            mark: (entry, caller)
            for mark, (entry, caller) in self._true.items()
            if self._entries.get(entry.id) == entry
        }

    def known(self, key: str) -> Caller | None:
        """Who a key belongs to, if that has been found out before. Takes some two microseconds."""
        found = self._true.get(self._mark(key))
        return None if found is None else found[1]

    async def find(self, key: str) -> Caller | None:
        """Who a key belongs to; None if it is none, or counts no more."""
        if (caller := self.known(key)) is not None:
            return caller
        if (parts := parse_key(key)) is None:
            return None
        entry_id, secret = parts
        if (entry := self._entries.get(entry_id)) is None:
            return None
        mark = self._mark(key)
        if (checking := self._under_way.get(mark)) is None:
            checking = asyncio.create_task(self._check(secret, entry))
            self._under_way[mark] = checking
            checking.add_done_callback(lambda _: self._under_way.pop(mark, None))
        true = await asyncio.shield(checking)  # others may wait for it, too
        # It may have been revoked meanwhile.
        if not true or self._entries.get(entry_id) != entry:
            return None
        caller = _caller(entry, f"key mien_{entry.id}")
        self._true[mark] = (entry, caller)
        return caller

    def of_certificate(self, names: Iterable[str]) -> Caller | None:
        """Who a client certificate with these names belongs to: the first that is known."""
        return next(
            (self._certificates[name] for name in names if name in self._certificates), None
        )

    async def _check(self, secret: str, entry: Entry) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, is_secret_of, secret, entry)

    def _mark(self, key: str) -> bytes:
        return hashlib.blake2b(
            key.encode("utf-8", "replace"), key=self._secret, digest_size=16
        ).digest()


def _caller(entry: Entry, proof: str) -> Caller:
    return Caller(entry.name, with_included(entry.roles), proof)
