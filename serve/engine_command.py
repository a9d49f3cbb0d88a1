"""The engine's command line: from `engine.*` to the arguments and the environment of a vLLM server.

Owns which of vLLM's options Loam interprets; everything else rides in `engine.args` and is passed through. Does not
start anything (serve/engine.py does) and does not know what a request is.
"""

import json
import logging
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.offline import offline_environment

logger = logging.getLogger(__name__)

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM 0.32 accepts for --max-lora-rank. Source: vllm/config/lora.py."""

OWNED_ARGUMENTS = {
    "model": "model=…",
    "served-model-name": "model=…",
    "tokenizer": "model=…",
    "dtype": "engine.dtype",
    "max-model-len": "engine.max_model_len",
    "max-num-seqs": "engine.max_num_seqs",
    "gpu-memory-utilization": "engine.gpu_memory_utilization",
    "tensor-parallel-size": "engine.tensor_parallel_size",
    "enforce-eager": "engine.enforce_eager",
    "max-lora-rank": "engine.max_lora_rank",
    "max-loras": "engine.max_loras",
    "enable-lora": "adapters=[…]",
    "lora-modules": "adapters=[…]",
}
"""vLLM options that have another home here, with that home."""

REFUSED_ARGUMENTS = {
    "uds": "vLLM listens on a private unix socket only",
    "host": "vLLM listens on a private unix socket only",
    "port": "vLLM listens on a private unix socket only",
    "api-key": "a random key is made at each start",
    "ssl-keyfile": "only the gateway listens to others",
    "ssl-certfile": "only the gateway listens to others",
    "ssl-ca-certs": "only the gateway listens to others",
    "middleware": "no foreign code runs in the engine",
    "trust-remote-code": "no foreign code runs in the engine",
    "tool-parser-plugin": "no foreign code runs in the engine",
    "reasoning-parser-plugin": "no foreign code runs in the engine",
    "io-processor-plugin": "no foreign code runs in the engine",
    "worker-cls": "Loam sets it",
    "worker-extension-cls": "no foreign code runs in the engine",
    "tool-server": "no tool runs in the engine",
    "trust-request-chat-template": "a request never brings its own template",
    "trust-request-mm-kwargs": "a request never sets these",
    "default-chat-template-kwargs": "the template's date comes from the model and its adapters",
    "enable-log-requests": "prompts are never logged",
    "enable-log-outputs": "answers are never logged",
    "enable-sleep-mode": "it needs a developer mode that opens unguarded routes",
    "allowed-local-media-path": "the engine reads no files for a request",
    "config": "options stand in conf/ or on the command line",
}
"""vLLM options that stay as Loam sets them, with the reason."""

STRETCHED = frozenset({"linear", "dynamic"})
"""Rotary positions with which a model reads more tokens than its `max_position_embeddings`, as vLLM counts."""

CPU_WORKER = "serve.cpu_worker.GroupedLoraWorker"


@dataclass(slots=True)
class EngineConfig:
    """What stands under `engine`.

    None means: by the hardware profile (conf/engine/), else vLLM's own choice.

    Attributes:
        urls: vLLM servers that others run, as `unix:PATH` or `http://HOST:PORT`; none: the gateway runs one itself.
        device: `cpu` or `cuda`.
        dtype: Of the weights in the engine: `bfloat16`, `float16` or `float32`.
        max_model_len: Context length in tokens, prompt and answer together; never more than the model reads.
        max_num_seqs: Sequences that run at the same time.
        gpu_memory_utilization: Most of the card's memory for vLLM, 0 to 1; None: what embedder, reranker, indexes and a
            training job leave.
        tensor_parallel_size: GPUs that share one model.
        kv_cache_gib: Memory for the key-value cache on a CPU, in GiB.
        cpu_threads: CPU cores for vLLM's arithmetic: `all`, `auto` (all but one), or a list such as `0-3`.
        enforce_eager: Skip compilation and graph capture: starts sooner, runs slower on a GPU.
        max_lora_rank: Largest rank of an adapter that can be served; None: the largest that is served, 16 at least.
        max_loras: Adapters that can run in the same batch; None: as many as are served, 4 to 32.
        trainer_gib: GiB of the card that are left to a training job beside the server; 0: none runs beside it.
        start_timeout_s: Longest wait for the engine to become ready.
        first_byte_timeout_s: Longest wait for the first byte of an answer.
        stop_timeout_s: Time between asking the engine to stop and killing it.
        max_in_flight: Requests that one vLLM server is given at a time; one more is answered 503.
        health_interval_s: Between two questions whether the engine is alive.
        canary_interval_s: Without any answer, before one token is asked for to see that it still generates.
        canary_timeout_s: Longest wait for that token; after the second in vain the engine is restarted, or left out.
        backoff_max_s: Longest wait before a restart; the first is 1 s, each further one doubles.
        args: Any other option of vLLM's server, by its name without dashes in front.
    """

    urls: list[str] = field(default_factory=list)
    device: str | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    kv_cache_gib: int | None = None
    cpu_threads: str | None = None
    enforce_eager: bool | None = None
    max_lora_rank: int | None = None
    max_loras: int | None = None
    trainer_gib: float = 0.0
    start_timeout_s: float = 900.0
    first_byte_timeout_s: float = 300.0
    stop_timeout_s: float = 10.0
    max_in_flight: int = 256
    health_interval_s: float = 5.0
    canary_interval_s: float = 30.0
    canary_timeout_s: float = 60.0
    backoff_max_s: float = 60.0
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every range; all faults come in one message."""
        faults = [
            _choice("engine.device", self.device, (None, "cpu", "cuda")),
            _choice("engine.dtype", self.dtype, (None, "bfloat16", "float16", "float32")),
            _choice("engine.max_lora_rank", self.max_lora_rank, (None, *LORA_RANKS)),
            *(
                f"engine.{name}: wanted at least {least}, found {value}"
                for name, least, value in (
                    ("max_model_len", 128, self.max_model_len),
                    ("max_num_seqs", 1, self.max_num_seqs),
                    ("tensor_parallel_size", 1, self.tensor_parallel_size),
                    ("kv_cache_gib", 1, self.kv_cache_gib),
                    ("max_loras", 1, self.max_loras),
                    ("trainer_gib", 0, self.trainer_gib),
                    ("start_timeout_s", 1, self.start_timeout_s),
                    ("first_byte_timeout_s", 0.05, self.first_byte_timeout_s),
                    ("stop_timeout_s", 0, self.stop_timeout_s),
                    ("max_in_flight", 1, self.max_in_flight),
                    ("health_interval_s", 0.05, self.health_interval_s),
                    ("canary_interval_s", 0.05, self.canary_interval_s),
                    ("canary_timeout_s", 0.05, self.canary_timeout_s),
                    ("backoff_max_s", 0.05, self.backoff_max_s),
                )
                if value is not None and value < least
            ),
            *_find_argument_faults(self.args),
            *_find_url_faults(self.urls),
        ]
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            faults.append(f"engine.gpu_memory_utilization: wanted more than 0 and at most 1, found {share}")
        found = [fault for fault in faults if fault]
        if found:
            raise ConfigError("; ".join(found), param="engine")


def _choice(key: str, value: object, choices: tuple[object, ...]) -> str:
    names = ", ".join(str(choice) for choice in choices if choice is not None)
    return "" if value in choices else f"{key}: wanted one of {names}; found {value!r}"


def _find_url_faults(urls: list[str]) -> list[str]:
    faults = [
        f"engine.urls: wanted unix:PATH or http://HOST:PORT, found {url!r}"
        for url in urls
        if not re.fullmatch(r"unix:/.+|https?://[^/]+/?", url)
    ]
    if len(set(urls)) < len(urls):
        faults.append("engine.urls: wanted every server once, found one twice")
    return faults


def _find_argument_faults(arguments: dict[str, Any]) -> list[str]:
    faults = []
    for key in arguments:
        name = key.replace("_", "-").lstrip("-")
        if name in OWNED_ARGUMENTS:
            faults.append(f"engine.args.{key}: this value has its own key. Use {OWNED_ARGUMENTS[name]}")
        elif name in REFUSED_ARGUMENTS:
            faults.append(f"engine.args.{key}: cannot be changed, because {REFUSED_ARGUMENTS[name]}. Remove it")
    return faults


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How to start one engine, but for what changes at each start (socket and key).

    Attributes:
        arguments: Program and arguments.
        environment: All variables of the process.
    """

    arguments: list[str]
    environment: dict[str, str]


def build_command(
    config: EngineConfig, model: Path, served_name: str, template_date: str | None, scratch: Path
) -> EngineCommand:
    """Build the command that starts vLLM for a base model.

    Args:
        config: What stands under `engine`, filled up by the hardware profile.
        model: The base model's folder.
        served_name: Its name in requests.
        template_date: The date that the chat template prints, or None for a template without one.
        scratch: A private folder for the engine's own sockets and temporary files.

    Returns:
        The command, without socket and key.
    """
    options: dict[str, Any] = {
        "model": str(model.resolve()),
        "served-model-name": served_name,
        "dtype": config.dtype,
        "max-model-len": cap_length(config.max_model_len, model),
        "max-num-seqs": config.max_num_seqs,
        "enforce-eager": config.enforce_eager,
        "enable-lora": True,
        "max-lora-rank": config.max_lora_rank,
        "max-loras": config.max_loras,
        "generation-config": "vllm",
        "max-logprobs": 20,
        "disable-uvicorn-access-log": True,
    }
    if template_date is not None:
        options["default-chat-template-kwargs"] = {"date_string": template_date}
    if config.device == "cpu":
        options["worker-cls"] = CPU_WORKER
    else:
        options["gpu-memory-utilization"] = config.gpu_memory_utilization
        options["tensor-parallel-size"] = config.tensor_parallel_size
    options.update({key.replace("_", "-"): value for key, value in config.args.items()})
    arguments = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    for name, value in options.items():
        arguments += _format_option(name, value)
    return EngineCommand(arguments, _build_environment(config, scratch))


def cap_length(wanted: int | None, model: Path) -> int | None:
    """Return a context length that vLLM takes for a model: it ends at once where the model reads fewer tokens.

    Args:
        wanted: As configured; a profile's is meant for Llama 3, and a smaller model may read less.
        model: Its folder; without a config.json nothing is known.
    """
    path = model / "config.json"
    if wanted is None or not path.is_file():
        return wanted
    config = json.loads(path.read_text(encoding="utf-8"))
    most = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(most, int) or wanted <= most or rope.get("rope_type", rope.get("type")) in STRETCHED:
        return wanted
    logger.info("engine.max_model_len: wanted %d tokens, found a model that reads %d: these are taken", wanted, most)
    return most


def _format_option(name: str, value: Any) -> list[str]:
    """Return an option as vLLM's parser reads it: flags bare, lists spread out, mappings as JSON."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]


def _build_environment(config: EngineConfig, scratch: Path) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("LOAM_") and name != "VLLM_API_KEY"
    }
    environment = {
        **inherited,
        **offline_environment(),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_RPC_BASE_PATH": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
    }
    if config.device == "cpu":
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gib or 1))
        if config.cpu_threads is not None:
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", config.cpu_threads)
    else:  # FlashInfer's sampler is compiled by nvcc at the start, which dies without one (vLLM issue 49497)
        environment.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    return environment
