"""deploy/: its queries ask for what a server serves, and its settings are settings."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import mien
from mien_server.limits import worst_case
from mien_server.settings import load_settings
from tests.integration.test_server_metrics import fetch
from tools.local_server import LocalServer

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "mien.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "mien.json"
PROMTOOL = shutil.which("promtool")
FROM_PROMETHEUS = {"job", "instance"}
"""The labels that every sample gets as it is scraped."""

_NO_METRICS = {"by", "without", "on", "ignoring", "group_left", "group_right"} | {
    *("and", "or", "unless", "bool", "offset")
}


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def targets() -> list[dict[str, Any]]:
    """The queries of the dashboard's panels, and that of its variable."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked = dashboard["templating"]["list"][-1]["query"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", asked).groups()  # type: ignore[union-attr]
    return [*found, {"expr": f"{metric}{{{label}=~'.*'}}", "legendFormat": ""}]


def asked(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that a query of PromQL names."""
    query = re.sub(r"\[[^\]]*\]", "", re.sub(r'"[^"]*"|\'[^\']*\'', "", query))
    labels: set[str] = set()
    for matchers in re.findall(r"\{([^}]*)\}", query):
        labels |= set(re.findall(r"(\w+)\s*[=!]", matchers))
    query = re.sub(r"\{[^}]*\}", "", query)
    grouping = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"
    for group in re.findall(grouping, query):
        labels |= set(re.findall(r"\w+", group))
    rest = re.sub(grouping, "", query)
    return set(re.findall(r"\b[a-z]\w*\b(?!\s*\()", rest)) - _NO_METRICS, labels


def test_what_a_query_asks_for_is_found_in_it() -> None:
    query = 'sum by (le, a) (rate(x_total{b=~"c|{d}",e!="f"}[5m])) / on (g) y > 0.9 * 2 ^ 30 and z offset 1'
    assert asked(query) == ({"x_total", "y", "z"}, {"le", "a", "b", "e", "g"})


@pytest.fixture(scope="module")
def served(server: LocalServer, sample: Callable[[str], Path]) -> dict[str, set[str]]:
    """The labels of each sample's name that a server serves, after calls that went well and ill."""
    with mien.Client(server.address) as client:
        client.embed(sample("person_a_1"))
        with pytest.raises(mien.InvalidRequest):
            client.detect(b"no photo")
    found: dict[str, set[str]] = {
        # Prometheus' own, and that of a server with TLS, which test_no_secrets.py looks at.
        "up": set(),
        "mien_tls_certificate_days_left": set(),
    }
    text = fetch(server.metrics_url)
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            found.setdefault(each.name, set()).update(each.labels)
    return found


def every_query() -> Iterator[tuple[str, str]]:
    """Each query with the words that are told of its results."""
    for rule in rules():
        yield rule["expr"], re.sub(r"\$labels\.", "", rule["annotations"]["summary"])
    for target in targets():
        yield target["expr"], target["legendFormat"]


def test_queries_name_only_metrics_and_labels_that_a_server_serves(
    served: dict[str, set[str]],
) -> None:
    for query, told in every_query():
        metrics, labels = asked(query)
        labels |= set(re.findall(r"\{\{\s*([a-z]\w*)\s*\}\}", told))
        assert metrics, query
        assert metrics <= served.keys(), (query, metrics - served.keys())
        known = set().union(FROM_PROMETHEUS, *(served[metric] for metric in metrics))
        assert labels <= known, (query, labels - known)


def test_every_panel_has_a_place_of_its_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        x, y, w, h = (panel["gridPos"][side] for side in "xywh")
        assert x + w <= 24
        cells = {(column, line) for column in range(x, x + w) for line in range(y, y + h)}
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_alert_says_how_loud_it_is() -> None:
    assert {rule["labels"]["severity"] for rule in rules()} == {"page", "ticket"}
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool, of Prometheus, is not on the PATH")
def test_promtool_takes_rules_and_queries_and_the_alerts_fire_when_they_should(
    tmp_path: Path,
) -> None:
    queries = [
        {"record": f"query:{i}", "expr": re.sub(r"\$__\w+", "5m", target["expr"])}
        for i, target in enumerate(targets())
    ]
    shutil.copy(RULES, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    dashboard = tmp_path / "dashboard.yml"
    dashboard.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": queries}]}))
    commands: list[list[str | Path]] = [
        ["check", "config", DEPLOY / "prometheus" / "prometheus.yml"],
        ["check", "rules", RULES, dashboard],
        ["test", "rules", tmp_path / "alerts_test.yml"],
    ]
    for command in commands:
        done = subprocess.run(
            [str(PROMTOOL), *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_compose_s_server_has_settings_that_hold_and_the_memory_for_them() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    server = services["mien"]
    settings = load_settings(
        {name.removeprefix("MIEN_").lower(): at for name, at in server["environment"].items()}
    )
    limit = int(server["mem_limit"].removesuffix("g")) << 30
    models = 400 << 20
    assert sum(worst_case(settings, connections=10_000).values()) + models < limit
    (alert,) = (rule for rule in rules() if rule["alert"] == "MienMemory")
    assert f"{server['mem_limit'].removesuffix('g')} * 2 ^ 30" in alert["expr"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_kubernetes_server_has_settings_that_hold_and_the_memory_for_them() -> None:
    deployment, service = yaml.safe_load_all(
        (DEPLOY / "kubernetes" / "mien.yaml").read_text("utf-8")
    )
    pod = deployment["spec"]["template"]["spec"]
    (server,), (keys,) = pod["containers"], pod["initContainers"]
    given = {each["name"].removeprefix("MIEN_").lower(): each["value"] for each in server["env"]}
    settings = load_settings(given)
    assert pod["terminationGracePeriodSeconds"] > (
        settings.lame_duck_secs + settings.exit_timeout_secs
    )
    limit = int(server["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    assert sum(worst_case(settings, connections=10_000).values()) + (400 << 20) < limit
    assert server["image"] == keys["image"]

    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"grpc": settings.grpc_port, "metrics": settings.metrics_port}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports.keys()
    probes = [server[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert [(probe["path"], probe["port"]) for probe in probes] == [
        *(("/readyz", "metrics"), ("/readyz", "metrics"), ("/healthz", "metrics"))
    ]

    mounts = {each["name"]: each["mountPath"] for each in server["volumeMounts"]}
    written = {each["name"]: each["mountPath"] for each in keys["volumeMounts"]}
    assert mounts.keys() | written.keys() == {volume["name"] for volume in pod["volumes"]}
    assert (str(settings.tls_cert), str(settings.tls_key)) == ("/tls/tls.crt", "/tls/tls.key")
    assert mounts["tls"] == "/tls"
    assert keys["command"] == [
        *("install", "-m", "600"),
        f"{written['secret']}/keys.json",
        str(settings.keys_file),
    ]
    assert mounts["keys"] == written["keys"] == "/keys"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]


def test_provisioning_is_yaml() -> None:
    files = sorted((DEPLOY / "grafana" / "provisioning").rglob("*.yaml"))
    assert [yaml.safe_load(file.read_text())["apiVersion"] for file in files] == [1, 1]


def test_unit_runs_the_server_with_settings_that_hold_within_its_memory() -> None:
    lines = [
        line.partition("=")
        for line in (DEPLOY / "systemd" / "mien.service").read_text().splitlines()
        if line and line[0] not in "#["
    ]
    unit = {name: value for name, _, value in lines}
    assert len(unit) == len(lines)
    assert unit["ExecStart"] == "/opt/mien/bin/mien-server serve --config /etc/mien/mien.toml"
    settings = load_settings({"config": str(DEPLOY / "systemd" / "mien.toml")})
    assert int(unit["TimeoutStopSec"]) > settings.lame_duck_secs + settings.exit_timeout_secs
    limit = int(unit["MemoryMax"].removesuffix("G")) << 30
    assert sum(worst_case(settings, connections=10_000).values()) + (400 << 20) < limit
    assert (unit["NoNewPrivileges"], unit["ProtectSystem"], unit["LimitCORE"]) == (
        *("yes", "strict"),
        "0",
    )
