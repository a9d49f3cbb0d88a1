"""vLLM's command line: values have one home, dangerous options stay shut, secrets stay out."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from serve.engine_command import (
    CPU_WORKER,
    OWNED_ARGUMENTS,
    REFUSED_ARGUMENTS,
    EngineConfig,
    build_command,
)


def build(config: EngineConfig, date: str | None = None) -> tuple[list[str], dict[str, str]]:
    command = build_command(config, Path("/models/base"), "base", date, Path("/scratch"))
    return command.arguments, command.environment


def read_option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(f"--{name}") + 1]


def test_a_cpu_gets_the_grouped_worker_and_its_own_variables() -> None:
    config = EngineConfig(device="cpu", dtype="bfloat16", kv_cache_gib=2, cpu_threads="0,1", enforce_eager=True)
    arguments, environment = build(config)
    assert arguments[:3] == [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    assert read_option(arguments, "worker-cls") == CPU_WORKER
    assert read_option(arguments, "dtype") == "bfloat16"
    assert "--enforce-eager" in arguments
    assert "--gpu-memory-utilization" not in arguments
    assert (environment["VLLM_CPU_KVCACHE_SPACE"], environment["VLLM_CPU_OMP_THREADS_BIND"]) == ("2", "0,1")


def test_a_gpu_gets_its_share_and_its_cards() -> None:
    config = EngineConfig(device="cuda", gpu_memory_utilization=0.8, tensor_parallel_size=2, enforce_eager=False)
    arguments, environment = build(config)
    assert read_option(arguments, "gpu-memory-utilization") == "0.8"
    assert read_option(arguments, "tensor-parallel-size") == "2"
    assert "--worker-cls" not in arguments
    assert "--no-enforce-eager" in arguments
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment


def test_a_gpu_samples_without_a_cuda_toolkit_unless_told_that_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    assert build(EngineConfig(device="cuda"))[1]["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in build(EngineConfig(device="cpu"))[1]
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert build(EngineConfig(device="cuda"))[1]["VLLM_USE_FLASHINFER_SAMPLER"] == "1"


@pytest.mark.parametrize(
    ("told", "length"),
    [
        ({"max_position_embeddings": 8192}, "8192"),
        ({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "16384"),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, "16384"),
        ({}, "16384"),
    ],
)
def test_a_cards_context_is_never_longer_than_the_models(told: dict[str, Any], length: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(told))
    command = build_command(EngineConfig(device="cuda", max_model_len=16384), tmp_path, "base", None, Path("/scratch"))
    assert read_option(command.arguments, "max-model-len") == length


def test_what_is_not_set_is_left_to_vllm() -> None:
    arguments, _ = build(EngineConfig(device="cuda"))
    assert not {"--dtype", "--max-model-len", "--default-chat-template-kwargs", "--enforce-eager"} & set(arguments)


def test_the_templates_date_is_pinned() -> None:
    arguments, _ = build(EngineConfig(device="cuda"), "26 Jul 2024")
    assert json.loads(read_option(arguments, "default-chat-template-kwargs")) == {"date_string": "26 Jul 2024"}


def test_open_options_are_passed_through_in_each_form() -> None:
    args: dict[str, Any] = {
        "enable_auto_tool_choice": True,
        "tool-call-parser": "llama3_json",
        "seed": 3,
        "kv_transfer_config": {"a": 1},
        "allowed_origins": ["x", "y"],
        "nothing": None,
        "enable-prefix-caching": False,
    }
    arguments, _ = build(EngineConfig(device="cuda", args=args))
    assert "--enable-auto-tool-choice" in arguments
    assert "--no-enable-prefix-caching" in arguments
    assert "--nothing" not in arguments
    assert read_option(arguments, "tool-call-parser") == "llama3_json"
    assert read_option(arguments, "seed") == "3"
    assert json.loads(read_option(arguments, "kv-transfer-config")) == {"a": 1}
    at = arguments.index("--allowed-origins")
    assert arguments[at + 1 : at + 3] == ["x", "y"]


@pytest.mark.parametrize("name", [*OWNED_ARGUMENTS, *REFUSED_ARGUMENTS])
@pytest.mark.parametrize("spell", [str, lambda name: name.replace("-", "_"), lambda name: f"--{name}"])
def test_options_with_a_home_or_a_danger_are_refused_in_any_spelling(name: str, spell: Any) -> None:
    with pytest.raises(ConfigError, match=r"engine\.args"):
        EngineConfig(args={spell(name): "x"})


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(dtype="int3", max_loras=0, gpu_memory_utilization=1.5, max_lora_rank=7, args={"port": 1})
    for part in (
        "engine.dtype",
        "engine.max_loras",
        "engine.gpu_memory_utilization",
        "engine.max_lora_rank",
        "args.port",
    ):
        assert part in caught.value.message


def test_the_engine_is_offline_and_knows_no_key_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAM_API_KEY", "secret")
    monkeypatch.setenv("VLLM_API_KEY", "old")
    arguments, environment = build(EngineConfig(device="cpu"))
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment["VLLM_SERVER_DEV_MODE"] == "0"
    assert environment["TMPDIR"] == environment["VLLM_RPC_BASE_PATH"] == "/scratch"
    assert not {"LOAM_API_KEY", "VLLM_API_KEY"} & set(environment)
    assert "secret" not in " ".join([*arguments, *environment.values()])
