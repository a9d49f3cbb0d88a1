"""core.offline: the switch sets everything, and going online keeps telemetry off."""

from core.offline import HUB_VARIABLES, TELEMETRY_VARIABLES, switch_offline, switch_online


def test_offline_sets_hub_and_telemetry() -> None:
    environment: dict[str, str] = {"HF_HUB_OFFLINE": "0"}
    switch_offline(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert TELEMETRY_VARIABLES.items() <= environment.items()


def test_online_lifts_the_hub_only() -> None:
    environment: dict[str, str] = {}
    switch_offline(environment)
    switch_online(environment)
    assert not HUB_VARIABLES.keys() & environment.keys()
    assert TELEMETRY_VARIABLES.items() <= environment.items()
