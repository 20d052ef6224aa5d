"""The parameters that split a model's traffic, as a `Traffic`."""

from typing import Any

from mien_server.repository.config.parameters import Parameters
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.repository.traffic import Traffic

TRAFFIC_PARAMETERS = frozenset({"canary_version", "canary_percent", "shadow_version"})


def read_traffic(text: ConfigText, parameters: Parameters) -> Traffic:
    """The traffic splitting that a config asks for.

    Raises:
        ConfigError: half of a canary, one version as both candidates, or versions that version_policy
            does not keep loaded beside at least one more.
    """
    canary = parameters.integer("canary_version", 1, 0)
    shadow = parameters.integer("shadow_version", 1, 0)
    if not canary and "canary_percent" in parameters:
        raise parameters.error("canary_percent", "says how much, canary_version is missing")
    percent = parameters.number("canary_percent", 0, 100) if canary else 0.0
    if canary and canary == shadow:
        raise parameters.error("shadow_version", f"{shadow} is the canary_version already")
    traffic = Traffic(canary, percent, shadow)
    for parameter, version in traffic.candidates.items():
        if problem := _not_loaded(text.message.version_policy, version, len(traffic.candidates)):
            raise parameters.error(parameter, problem)
    return traffic


def _not_loaded(policy: Any, version: int, candidates: int) -> str:
    """Why version_policy cannot keep a candidate loaded beside a version that is none, or ""."""
    if policy.HasField("all"):
        return ""
    specific = policy.HasField("specific")
    if specific and version not in policy.specific.versions:
        return f"is {version}, which version_policy does not load: add it to specific.versions"
    loaded = len(set(policy.specific.versions)) if specific else policy.latest.num_versions or 1
    if loaded <= candidates:
        return (
            "needs a version beside it that is no candidate: write version_policy"
            f" {{ latest {{ num_versions: {candidates + 1} }} }}, or name them"
        )
    return ""
