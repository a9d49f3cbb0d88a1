"""The offline switch: environment variables that keep every library from calling home.

Programs switch offline before they import anything else (core/entry.py). Offline is the default; the one command that
may go online (`scripts/models.py get NAME --online` for a hub model) calls `switch_online()` afterwards and says so.
Does not know which libraries are installed: an unknown variable costs nothing.
"""

import os
from collections.abc import MutableMapping

HUB_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
"""Set while offline, removed by `switch_online`."""

TELEMETRY_VARIABLES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAGAS_DO_NOT_TRACK": "true",
    "ANONYMIZED_TELEMETRY": "False",
    "WANDB_MODE": "disabled",
    "WANDB_DISABLED": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "LANGCHAIN_TRACING_V2": "false",
}
"""Set always: Loam reports to nobody."""

QUIET_VARIABLES = {
    "VLLM_HOST_IP": "127.0.0.1",  # else vLLM connects outward to learn its own address
    "TOKENIZERS_PARALLELISM": "false",  # else tokenizers warns at every fork
}


def offline_environment() -> dict[str, str]:
    """Return every variable of the offline switch; the container image sets the same."""
    return {**HUB_VARIABLES, **TELEMETRY_VARIABLES, **QUIET_VARIABLES}


def switch_offline(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set every hub, telemetry and address variable. Call before importing transformers, datasets or vLLM."""
    environment.update(offline_environment())


def switch_online(environment: MutableMapping[str, str] = os.environ) -> None:
    """Allow hub access for this process, because the user asked for a download. Telemetry stays off."""
    environment.update(TELEMETRY_VARIABLES | QUIET_VARIABLES)
    for name in HUB_VARIABLES:
        environment.pop(name, None)
