"""The file that says who may call: API keys and names of client certificates, each with its roles.

An API key is `mien_<id>_<secret>`. The secret is 256 random bits that mien makes; nobody chooses one. Of it
the file holds a salted scrypt hash, from `hashlib`: that is OpenSSL's, needs no further package, and leaves
the interpreter free while it computes. The id is the beginning of the secret's SHA-256, so that a key that
somebody made up is told from a true one without a look at the file and without scrypt, whether it has a known
id or not: a flood of wrong keys costs microseconds each, and no answer's time tells which ids there are.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mien_server.access.roles import CallerRole
from mien_server.errors import OperatorError

MODE = 0o600
PREFIX = "mien_"
_ID_LENGTH = 12
_KEY = re.compile(rf"{PREFIX}([a-z2-7]{{{_ID_LENGTH}}})_([a-z2-7]{{52}})")
_SECRET_BYTES, _SALT_BYTES = 32, 16

_N, _R, _P = 2**14, 8, 1
"""scrypt's cost: 16 MiB and some 30 ms of a core. The file's format fixes it."""

MAX_FILE_BYTES = 16 * 1024 * 1024


class KeysError(OperatorError):
    """The file of keys cannot be used; the message says why and what to do."""


Hex = Annotated[str, Field(pattern="^([0-9a-f]{2})+$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+( [!-~]+)*$")]


class Entry(BaseModel):
    """One line of the file.

    Attributes:
        id: names the entry. It is no secret.
        name: who calls, in printable ASCII. Of a certificate: its common name or an alternative name.
        roles: what that one may do.
        kind: what proves who it is.
        created: when, in UTC, as ISO 8601 has it.
        revoked: since when it counts no more, or None.
        salt: of the hash; "" of a certificate.
        hash: scrypt's 32 bytes, in hex; "" of a certificate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=rf"^[a-z2-7]{{{_ID_LENGTH}}}$")]
    name: Name
    roles: Annotated[tuple[CallerRole, ...], Field(min_length=1)]
    kind: Literal["key", "certificate"]
    created: str
    revoked: str | None = None
    salt: Hex | Literal[""] = ""
    hash: Hex | Literal[""] = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    entries: tuple[Entry, ...] = ()


def new_entry(name: str, roles: tuple[CallerRole, ...], *, certificate: bool) -> tuple[Entry, str]:
    """An entry, and its key, which is nowhere else; "" of a certificate.

    Raises:
        KeysError: the name is empty, too long, or not printable ASCII.
    """
    secret, salt = _base32(secrets.token_bytes(_SECRET_BYTES)), secrets.token_bytes(_SALT_BYTES)
    entry_id = _id_of(secret)
    proof = {} if certificate else {"salt": salt.hex(), "hash": _scrypt(secret, salt).hex()}
    try:
        entry = Entry(
            id=entry_id,
            name=name,
            roles=roles,
            kind="certificate" if certificate else "key",
            created=_now(),
            **proof,
        )
    except ValidationError as error:
        raise KeysError(
            f"{name!r} is no name: 1 to 200 printable ASCII characters, spaces only between words."
        ) from error
    return entry, "" if certificate else f"{PREFIX}{entry_id}_{secret}"


def parse_key(key: str) -> tuple[str, str] | None:
    """The id and the secret of a key; None if mien cannot have made it. Takes microseconds."""
    if (found := _KEY.fullmatch(key)) is None:
        return None
    entry_id, secret = found.groups()
    return (entry_id, secret) if hmac.compare_digest(entry_id, _id_of(secret)) else None


def is_secret_of(secret: str, entry: Entry) -> bool:
    """Whether an entry was made with this secret. Takes some 30 ms, with the interpreter free."""
    computed = _scrypt(secret, bytes.fromhex(entry.salt))
    return hmac.compare_digest(computed, bytes.fromhex(entry.hash))


def read_keys(path: Path) -> tuple[Entry, ...]:
    """The entries of a file.

    Raises:
        KeysError: it is not there, others than its owner may read it, or it is damaged.
    """
    try:
        # A pipe that nobody writes to is not waited for.
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeysError(f"{path} is no file. {_name_another()}")
            if status.st_mode & ~MODE & 0o777:
                raise KeysError(
                    f"{path} has the mode {stat.S_IMODE(status.st_mode):o}, but only its owner may read"
                    f" it: chmod {MODE:o} {path}"
                )
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise KeysError(
            f"{path} does not exist. Make it, and a first key:"
            f" `mien-server keys create NAME --role infer --keys-file {path}`"
        ) from None
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}. {_name_another()}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise KeysError(f"{path} is larger than {MAX_FILE_BYTES} bytes. {_name_another()}")
    return _parse(path, raw)


def _parse(path: Path, raw: bytes) -> tuple[Entry, ...]:
    damaged = f"{path} is no file of keys, or damaged"
    try:
        entries = _File.model_validate_json(raw).entries
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # the input may be a hash
        where = ".".join(map(str, first["loc"]))
        raise KeysError(f"{damaged}: {f'{where}: ' if where else ''}{first['msg']}") from None
    if len({entry.id for entry in entries}) < len(entries):
        raise KeysError(f"{damaged}: an id is there twice")
    for entry in entries:
        if (entry.kind == "key") != bool(entry.salt and entry.hash):
            raise KeysError(f"{damaged}: a key has a salt and a hash, a certificate has neither")
    return entries


class KeysFile:
    """The file as commands change it: one at a time, and for a server that reads it at once.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # what a link points to is replaced, not the link

    def add(self, entry: Entry) -> None:
        """Adds an entry; makes the file, and its folder, if there is none.

        Raises:
            KeysError: the file cannot be read or written.
        """
        with self._locked():
            entries = read_keys(self.path) if self.path.exists() else ()
            self._write((*entries, entry))

    def revoke(self, entry_id: str) -> Entry:
        """Revokes an entry, and says which that was. One that is revoked already stays as it is.

        Raises:
            KeysError: there is none of that id, or the file cannot be read or written.
        """
        with self._locked():
            entries = {entry.id: entry for entry in read_keys(self.path)}
            if (entry := entries.get(entry_id)) is None:
                raise KeysError(
                    f"{self.path} has no key with the id {entry_id!r}: `mien-server keys list` shows them."
                )
            if entry.revoked is None:
                entry = entries[entry_id] = entry.model_copy(update={"revoked": _now()})
                self._write(tuple(entries.values()))
            return entry

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=10, mode=MODE)
        try:
            lock.acquire()
        except OSError as error:  # filelock's Timeout is one, too
            raise KeysError(
                f"cannot write in {self.path.parent}: {error.strerror or 'another command is at it'}"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _write(self, entries: tuple[Entry, ...]) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        text = _File(entries=entries).model_dump_json(indent=1)
        try:
            partial.unlink(missing_ok=True)
            with open(partial, "x", opener=lambda name, flags: os.open(name, flags, MODE)) as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise KeysError(f"cannot write {self.path}: {error.strerror}") from error


def _name_another() -> str:
    return "Name another with --keys-file (MIEN_KEYS_FILE)."


def _id_of(secret: str) -> str:
    return _base32(hashlib.sha256(secret.encode()).digest())[:_ID_LENGTH]


def _scrypt(secret: str, salt: bytes) -> bytes:
    memory = 128 * _N * _R * 2
    return hashlib.scrypt(
        secret.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=memory, dklen=_SECRET_BYTES
    )


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
