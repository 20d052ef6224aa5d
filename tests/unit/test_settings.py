"""Settings: precedence, error messages, and the page generated from them."""

from pathlib import Path

import pytest

from mien_server.settings import (
    GROUPS,
    Settings,
    SettingsError,
    configuration_page,
    env_of,
    flag_of,
    load_settings,
    settings_of,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(env_of(name), raising=False)


def config_file(folder: Path, text: str) -> str:
    path = folder / "mien.toml"
    path.write_text(text)
    return str(path)


def test_defaults_are_loopback_and_the_shipped_models() -> None:
    settings = load_settings()
    assert settings.grpc_address.is_loopback
    assert settings.grpc_port == 8001
    assert (settings.default_detector, settings.default_embedder) == ("retinaface", "sface")


def test_flag_beats_variable_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config_file(tmp_path, "grpc_port = 1\nmax_faces = 2\ncpu_cores = 3\n")
    monkeypatch.setenv("MIEN_GRPC_PORT", "4")
    monkeypatch.setenv("MIEN_MAX_FACES", "5")
    settings = load_settings({"config": file, "grpc_port": "6"})
    assert (settings.grpc_port, settings.max_faces, settings.cpu_cores) == (6, 5, 3)
    assert settings.exit_timeout_secs == 30


def test_file_can_be_named_by_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIEN_CONFIG", config_file(tmp_path, 'log_format = "json"\n'))
    assert load_settings().log_format == "json"


def test_several_repositories_from_flags_variable_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (Path("a"), Path("b"))
    assert load_settings({"model_repository": ["a", "b"]}).model_repository == expected
    file = config_file(tmp_path, 'model_repository = ["a", "b"]\n')
    assert load_settings({"config": file}).model_repository == expected
    monkeypatch.setenv("MIEN_MODEL_REPOSITORY", "a:b")
    assert load_settings().model_repository == expected


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIEN_CPU_CORES", "")
    assert load_settings().cpu_cores == 0


BAD_VALUES = {
    "grpc_port": ["-1", "65536", "http", "80.5"],
    "grpc_address": ["localhost", "256.0.0.1", "127.0.0.1:8001"],
    "reflection": ["maybe"],
    "metrics_address": ["localhost"],
    "metrics_port": ["-1", "65536"],
    "default_deadline_secs": ["0", "-1", "nan", "inf"],
    "max_message_bytes": ["0", "32MiB"],
    "max_image_pixels": ["1"],
    "max_faces": ["0", "1001"],
    "max_pending_requests": ["0"],
    "cpu_cores": ["-1"],
    "log_level": ["loud"],
    "log_format": ["xml"],
    "exit_timeout_secs": ["-0.1", "nan"],
    "config": ["/no/such/file.toml"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values]
)
def test_bad_value_names_its_flag_and_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError) as by_flag:
        load_settings({name: value})
    monkeypatch.setenv(env_of(name), value)
    with pytest.raises(SettingsError) as by_variable:
        load_settings()
    for caught in (by_flag, by_variable):
        assert f"{flag_of(name)} ({env_of(name)})" in str(caught.value)
        assert value in str(caught.value)


def test_all_bad_values_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"grpc_port": "x", "log_level": "loud"})
    assert "--grpc-port" in str(caught.value)
    assert "--log-level" in str(caught.value)


def test_limit_that_another_makes_unreachable_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--max-image-bytes.*--max-message-bytes"):
        load_settings({"max_image_bytes": str(33 * 1024 * 1024)})
    with pytest.raises(SettingsError, match=r"--max-message-bytes.*--max-pending-bytes"):
        load_settings({"max_pending_bytes": str(31 * 1024 * 1024)})


def test_one_port_for_calls_and_metrics_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--metrics-port .*9000 is that of --grpc-port"):
        load_settings({"grpc_port": "9000", "metrics_port": "9000"})
    assert load_settings({"grpc_port": "8002", "allow_metrics": "false"}).grpc_port == 8002
    assert load_settings({"grpc_port": "0", "metrics_port": "0"}).metrics_port == 0


def test_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="gprc_port: no such setting"):
        load_settings({"config": config_file(tmp_path, "gprc_port = 1\n")})


def test_unknown_variable_is_refused_with_what_it_resembles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIEN_GRPC_PROT", "9001")
    monkeypatch.setenv("MIEN_COLOUR_OF_THE_DOOR", "green")
    monkeypatch.setenv("MIEN_GRCP_PORT", "9001")
    with pytest.raises(SettingsError) as caught:
        load_settings({"decode_threads": -1})
    bad_value, *unknown = str(caught.value).splitlines()
    assert bad_value.startswith("--decode-threads")
    assert unknown == [
        "MIEN_COLOUR_OF_THE_DOOR: no such setting; the configuration page lists them all",
        "MIEN_GRCP_PORT: no such setting; did you mean MIEN_GRPC_PORT?",
        "MIEN_GRPC_PROT: no such setting; did you mean MIEN_GRPC_PORT?",
    ]
    with pytest.raises(SettingsError, match="MIEN_GRPC_PROT"):
        load_settings()


def test_variables_of_the_client_and_of_kubernetes_are_none_of_the_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = load_settings()
    for name, value in {
        "MIEN_ADDRESS": "faces:8001",
        "MIEN_API_KEY": "mien_a_b",
        "MIEN_TOKEN": "a.b.c",
        "MIEN_SERVICE_HOST": "10.0.0.7",
        "MIEN_SERVICE_PORT": "8001",
        "MIEN_SERVICE_PORT_GRPC": "8001",
        "MIEN_PORT": "tcp://10.0.0.7:8001",
        "MIEN_PORT_8001_TCP": "tcp://10.0.0.7:8001",
        "MIEN_PORT_8001_TCP_ADDR": "10.0.0.7",
        "MIEN_FACES_SERVICE_HOST": "10.0.0.8",
        "MIEN_UNSET": "",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == without


def test_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config .*is not valid TOML"):
        load_settings({"config": config_file(tmp_path, "grpc_port: 1")})


def test_every_setting_is_in_one_group_and_described() -> None:
    grouped = [name for group in GROUPS for name in settings_of(group)]
    assert grouped == list(Settings.model_fields)
    assert all(info.description for info in Settings.model_fields.values())


def test_configuration_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert page == configuration_page(), (
        "run: python -m mien_server.settings > docs/configuration.md"
    )
