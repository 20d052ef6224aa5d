"""tools/mutants.py: which faults it makes of a module, and which of them it finds that no test notices."""

from pathlib import Path

import pytest

from tools.mutants import faults_in, faults_of, survivors


@pytest.mark.parametrize(
    ("code", "faulty"),
    [
        ("a < b", ["a <= b"]),
        ("a is not b in c", ["a is b in c", "a is not b not in c"]),
        ("x = (a) + (b)", ["x = (a) - (b)"]),
        ("x += 2.5", ["x -= 2.5", "x += 3.5"]),
        ("a and b and c", ["a or b and c", "a and b or c"]),
        ("x = not a", ["x = a"]),
        ("f(key=True)", ["pass", "f(key=False)"]),
        ("def f(a=0): raise E(a)", ["def f(a=1): raise E(a)", "def f(a=0): pass"]),
        ("x = max(y)", ["x = min(y)"]),
        ("x = y if f(z) else w", ["x = y if not f(z) else w"]),
        ("def f() -> int | None: return x", ["def f() -> int | None: return None"]),
        ("x = 'ä', 1", ["x = 'ä', 2"]),
    ],
)
def test_each_operator_makes_its_fault(code: str, faulty: list[str]) -> None:
    source = code.encode()
    made = {fault.put_into(source).decode() for fault in faults_in(Path("m.py"), source)}
    assert made == set(faulty)


@pytest.mark.parametrize(
    "code",
    [
        '"""A docstring of 1 < 2."""',
        "x: Literal[1]",
        "def f(x: Literal[1]) -> Literal[2]: return x",
        "@dataclass(frozen=True)\nclass A: ...",
        "logger.info('started', extra={'count': count + 1})",
        "def __repr__(self): return str(1)",
        "if TYPE_CHECKING: f()",
        "zip(a, b, strict=True).x",
        "x = f'{a + 1:>9}'",
        "def f() -> int | None: return None",
    ],
)
def test_what_nobody_would_miss_is_left_alone(code: str) -> None:
    assert faults_in(Path("m.py"), code.encode()) == []


def test_a_fault_is_told_by_its_place_and_both_lines() -> None:
    source = b"def f():\n    if a:\n        g(\n            1)\n"
    told = [fault.difference(source) for fault in faults_in(Path("m.py"), source)]
    assert told == [
        "m.py:2: if a:  =>  if not a:",
        "m.py:3: g(  =>  pass",
        "m.py:4: 1)  =>  2)",
    ]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two functions, of which one is tested; its pytest needs no plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    package, tests = tmp_path / "server/mien_server/toy", tmp_path / "tests/unit/toy"
    package.mkdir(parents=True)
    tests.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "code.py").write_text(
        "def covered(a, b):\n    return a < b\n\n\ndef bare(a, b):\n    return a > b\n"
    )
    (tests / "test_code.py").write_text(
        "from mien_server.toy.code import covered\n\n\n"
        "def test_it():\n    assert covered(1, 2) and not covered(2, 2)\n"
    )
    return tmp_path


def test_the_fault_that_no_test_notices_is_printed(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = checkout / "server/mien_server/toy/code.py"
    before = code.read_text()
    faults = faults_of(checkout, "toy")
    assert len(faults) == 2
    place = "server/mien_server/toy/code.py:6: return a > b  =>  return a >= b"
    assert survivors(checkout, "toy", faults) == [place]
    assert capsys.readouterr().out.splitlines() == [place, "1 of 2 were caught"]
    assert code.read_text() == before, "faults go into a copy"


def test_tests_that_fail_anyway_tell_nothing(checkout: Path) -> None:
    (checkout / "tests/unit/toy/test_code.py").write_text("def test_it(): assert False")
    with pytest.raises(SystemExit, match="tests/unit/toy does not pass even without a fault"):
        survivors(checkout, "toy", [])


def test_the_sdk_is_a_package_too_without_what_is_generated() -> None:
    root = Path(__file__).resolve().parents[3]
    files = {fault.path for fault in faults_of(root, "client")}
    assert Path("client/mien/channel.py") in files
    assert not any("v1" in path.parts for path in files)
