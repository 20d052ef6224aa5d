"""`mien-server keys`: who may call, and what."""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from mien_server.access.roles import ROLES, CallerRole
from mien_server.commands.shared import (
    Commands,
    add_command,
    add_group,
    add_json,
    add_settings,
    json_text,
    say,
)
from mien_server.settings import SettingsError, load_settings, name_of


def add_to(commands: Commands) -> None:
    """Adds `keys` and its commands."""
    keys = add_group(commands, "keys", "who may call: API keys and client certificates' names")
    for add in (_add_create, _add_list, _add_revoke):
        add_settings(add(keys), "keys_file")


def _add_create(keys: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        keys,
        "create",
        _create,
        help="let somebody call",
        description="Make an API key and print it, once: the file holds only a hash of it. A running server"
        " knows it a second later. To replace a key, make a second one of the same name, and revoke the first"
        " when nobody uses it any more.",
    )
    parser.add_argument("name", metavar="NAME", help="who: a team, a service")
    parser.add_argument(
        "--role",
        dest="roles",
        action="append",
        required=True,
        type=_role,
        metavar="ROLE",
        help=f"what they may do: {ROLES}; repeat it for several",
    )
    parser.add_argument(
        "--certificate",
        action="store_true",
        help="make no key: NAME is a name in their client certificate (--tls-client-ca)",
    )
    return parser


def _add_list(keys: Commands) -> argparse.ArgumentParser:
    parser = add_command(keys, "list", _list, help="show who may call; no secrets are there")
    add_json(parser)
    return parser


def _add_revoke(keys: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        keys, "revoke", _revoke, help="let a key or certificate call no more, from a second later"
    )
    parser.add_argument(
        "id", metavar="ID", help="of `mien-server keys list`: the key's middle part"
    )
    return parser


def _role(text: str) -> CallerRole:
    try:
        return CallerRole(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no role; there are {ROLES}") from None


def _create(name: str, roles: list[CallerRole], certificate: bool, **flags: object) -> int:
    from mien_server.access.keys import KeysFile, new_entry

    path = _path(flags)
    entry, key = new_entry(name, tuple(dict.fromkeys(roles)), certificate=certificate)
    KeysFile(path).add(entry)
    may = ", ".join(entry.roles)
    if certificate:
        say(f"client certificates of the name {name} may call: {may} (id {entry.id}, {path})")
    else:
        print(f"{name} may call: {may} (id {entry.id}, {path})", file=sys.stderr)
        print("the key, which is not shown again:", file=sys.stderr)
        say(key)
    return 0


def _list(as_json: bool, **flags: object) -> int:
    from mien_server.access.keys import read_keys

    entries = read_keys(_path(flags))
    if as_json:
        shown = [entry.model_dump(mode="json", exclude={"salt", "hash"}) for entry in entries]
        say(json_text({"keys": shown}))
        return 0
    rows = [("id", "name", "kind", "roles", "created", "revoked")]
    rows += [
        (e.id, e.name, e.kind, ",".join(e.roles), _day(e.created), _day(e.revoked)) for e in entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _revoke(id: str, **flags: object) -> int:
    from mien_server.access.keys import KeysFile

    entry = KeysFile(_path(flags)).revoke(id)
    say(f"revoked: {entry.kind} {entry.id} of {entry.name}")
    return 0


def _path(flags: dict[str, object]) -> Path:
    path = load_settings(flags).keys_file
    if path is None:
        raise SettingsError(f"name the file of keys: {name_of('keys_file')}")
    return path


def _day(moment: str | None) -> str:
    return "-" if moment is None else datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M")
