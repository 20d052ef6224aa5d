"""The file of keys: what is written, what is read, and what is refused."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from mien_server.access import keys as module
from mien_server.access.keys import (
    Entry,
    KeysError,
    KeysFile,
    is_secret_of,
    new_entry,
    parse_key,
    read_keys,
)
from mien_server.access.roles import CallerRole
from mien_server.commands.main import main

pytestmark = pytest.mark.usefixtures("quick_scrypt")
Output = pytest.CaptureFixture[str]


def made(path: Path, name: str = "billing", *roles: CallerRole) -> tuple[Entry, str]:
    entry, key = new_entry(name, roles or (CallerRole.INFER,), certificate=False)
    KeysFile(path).add(entry)
    return entry, key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_key_is_long_random_and_its_secret_is_nowhere_in_the_file(path: Path) -> None:
    (entry, key), (_, other) = made(path), made(path)
    assert key != other
    parts = parse_key(key)
    assert parts is not None
    entry_id, secret = parts
    assert entry_id == entry.id
    assert len(secret) * 5 >= 256
    assert secret not in path.read_text()
    assert is_secret_of(secret, entry)
    assert not is_secret_of(secret[::-1], entry)


def test_same_secret_would_have_another_hash_in_another_entry() -> None:
    first, second = (new_entry("a", (CallerRole.INFER,), certificate=False)[0] for _ in range(2))
    assert first.salt != second.salt


def test_what_mien_cannot_have_made_is_no_key(path: Path) -> None:
    _, key = made(path)
    _, other = made(path)
    swapped = f"{key[:17]}{other[17:]}"
    for wrong in ("", "mien_", key[:-1], key + "a", key.upper(), f" {key}", swapped, "x" * 10_000):
        assert parse_key(wrong) is None


def test_file_is_for_its_owner_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        made(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700])
def test_file_with_another_mode_is_refused_with_the_command_that_mends_it(
    path: Path, mode: int
) -> None:
    made(path)
    path.chmod(mode)
    with pytest.raises(KeysError, match=f"mode {mode:o}.*chmod 600 {path}"):
        read_keys(path)
    with pytest.raises(KeysError, match="chmod 600"):
        made(path)


def test_file_that_only_its_owner_reads_may_be_read_only(path: Path) -> None:
    made(path)
    path.chmod(0o400)
    assert len(read_keys(path)) == 1


def test_missing_file_says_how_to_make_it(path: Path) -> None:
    with pytest.raises(KeysError, match=r"mien-server keys create NAME --role infer --keys-file"):
        read_keys(path)
    with pytest.raises(KeysError, match="is no file"):
        read_keys(Path("/dev/null"))
    pipe = path.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    with pytest.raises(KeysError, match="is no file"):
        read_keys(pipe)
    with pytest.raises(KeysError, match="cannot read"):
        read_keys(path.parent)


def entry_of(path: Path) -> dict[str, object]:
    made(path)
    (entry,) = json.loads(path.read_text())["entries"]
    assert isinstance(entry, dict)
    return entry


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"roles": []}, "entries.0.roles"),
        ({"roles": ["root"]}, "entries.0.roles"),
        ({"id": "x"}, "entries.0.id"),
        ({"name": "two\nlines"}, "entries.0.name"),
        ({"salt": "zz"}, "entries.0.salt"),
        ({"salt": ""}, "a key has a salt and a hash"),
        ({"kind": "certificate"}, "a certificate has neither"),
        ({"surprise": 1}, "entries.0.surprise"),
    ],
)
def test_damaged_entry_is_named_without_its_hash(
    path: Path, change: dict[str, object], said: str
) -> None:
    entry = entry_of(path)
    path.write_text(json.dumps({"format": 1, "entries": [entry | change]}))
    with pytest.raises(KeysError) as caught:
        read_keys(path)
    assert said in str(caught.value)
    assert str(entry["hash"]) not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', "\x00\xff" * 100, '{"a": 1}'])
def test_what_is_no_file_of_keys_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeysError, match="is no file of keys, or damaged"):
        read_keys(path)


def test_one_id_twice_and_a_file_beyond_all_measure_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entry_of(path)
    path.write_text(json.dumps({"format": 1, "entries": [entry, entry]}))
    with pytest.raises(KeysError, match="an id is there twice"):
        read_keys(path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(KeysError, match="larger than 100 bytes"):
        read_keys(path)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "naïve", "x" * 201, "a  b", "a "])
def test_name_that_would_spoil_a_log_is_refused(path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="is no name"):
        made(path, name)
    assert not path.exists()


def test_revoked_entry_stays_in_the_file_and_stays_revoked(path: Path) -> None:
    entry, _ = made(path)
    made(path)
    revoked = KeysFile(path).revoke(entry.id)
    assert revoked.revoked
    assert KeysFile(path).revoke(entry.id) == revoked
    assert [each.revoked is None for each in read_keys(path)] == [False, True]
    with pytest.raises(KeysError, match="no key with the id 'nobody'"):
        KeysFile(path).revoke("nobody")


def test_commands_at_the_same_time_lose_nothing(path: Path) -> None:
    threads = [threading.Thread(target=made, args=(path,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(path)) == 6


def test_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeysError, match="No space left"):
        made(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir() if "partial" in each.name] == []


def test_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    made(path)
    link.symlink_to(path)
    made(link)
    assert link.is_symlink()
    assert len(read_keys(path)) == 2


def test_commands_create_list_and_revoke(path: Path, capsys: Output) -> None:
    flags = ["--keys-file", str(path)]
    assert main(["keys", "create", "billing", "--role", "infer", "--role", "read", *flags]) == 0
    out, err = capsys.readouterr()
    key = out.strip()  # alone on standard output, for a script to take
    parts = parse_key(key)
    assert parts is not None
    entry_id, secret = parts
    assert "not shown again" in err
    assert main(["keys", "create", "ops.example", "--certificate", "--role", "admin", *flags]) == 0
    assert "ops.example" in capsys.readouterr().out

    assert main(["keys", "list", *flags]) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["id", "name", "kind", "roles", "created", "revoked"]
    assert [row[1:4] for row in rows] == [
        ["billing", "key", "infer,read"],
        ["ops.example", "certificate", "admin"],
    ]
    assert main(["keys", "revoke", entry_id, *flags]) == 0
    assert "billing" in capsys.readouterr().out
    assert main(["keys", "list", "--json", *flags]) == 0
    listed = capsys.readouterr().out
    assert [bool(each["revoked"]) for each in json.loads(listed)["keys"]] == [True, False]
    assert secret not in listed
    assert "hash" not in listed


def test_commands_say_what_is_missing(path: Path, capsys: Output) -> None:
    assert main(["keys", "list"]) == 2
    assert "--keys-file (MIEN_KEYS_FILE)" in capsys.readouterr().err
    assert main(["keys", "list", "--keys-file", str(path)]) == 1
    assert "does not exist" in capsys.readouterr().err
    for flags in ([], ["--role", "root"]):
        with pytest.raises(SystemExit):
            main(["keys", "create", "x", "--keys-file", str(path), *flags])
    assert "infer, enrol, read, admin" in capsys.readouterr().err
    nowhere = "/dev/null/keys.json"
    assert main(["keys", "create", "x", "--role", "infer", "--keys-file", nowhere]) == 1
    assert "cannot write in" in capsys.readouterr().err
