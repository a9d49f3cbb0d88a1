"""Which profile fits this machine, and that it fills only what is open."""

import json
import os
from pathlib import Path

import pytest

from core.config import Device
from core.layout import DataDir
from retrieval.card_index import SCRATCH_BYTES
from retrieval.config import EmbedderConfig, IndexDevice, SearchConfig
from serve.card_budget import ENCODER_SCRATCH_BYTES, GIB, INDEX_SCRATCH_BYTES
from serve.engine_command import EngineConfig
from serve.hardware import detect_profile, fill_engine_config, read_card_memory, share_card


def put_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "cards", "profile"),
    [
        ("exit 9", [], "cpu"),
        ("echo 24564", [24564], "gpu_24gb"),
        ("echo 81559; echo 81559", [81559, 81559], "h100"),
        ("echo '[N/A]'", [], "cpu"),
    ],
)
def test_the_first_card_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cards: list[int], profile: str
) -> None:
    put_nvidia_smi(tmp_path, script, monkeypatch)
    assert read_card_memory() == cards
    assert detect_profile() == profile


def test_the_profile_fills_what_is_open_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, "echo 24564", monkeypatch)
    filled = fill_engine_config(EngineConfig(max_model_len=2048, start_timeout_s=5))
    assert (filled.device, filled.max_model_len, filled.start_timeout_s) == ("cuda", 2048, 5)
    assert filled.gpu_memory_utilization is None, "computed from what the others need"


def test_a_chosen_profile_is_left_alone() -> None:
    chosen = EngineConfig(device="cuda")
    assert fill_engine_config(chosen) == chosen


@pytest.mark.parametrize(
    ("cpu_info", "dtype"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", "bfloat16"),
        ("Features\t: fp asimd bf16\n", "bfloat16"),
        ("flags\t\t: fpu avx512f\nbugs : avx512_bf16\n", "float32"),
        ("", "float32"),
    ],
)
def test_a_cpu_takes_the_dtype_that_it_has_arithmetic_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_info: str, dtype: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpu_info)
    monkeypatch.setattr("serve.hardware.CPU_INFO", tmp_path / "cpuinfo")
    assert fill_engine_config(EngineConfig(device="cpu")).dtype == dtype
    assert fill_engine_config(EngineConfig(device="cpu", dtype="float16")).dtype == "float16"


def test_all_threads_are_named_one_by_one() -> None:
    filled = fill_engine_config(EngineConfig(device="cpu", cpu_threads="all"))
    assert filled.cpu_threads == ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert fill_engine_config(EngineConfig(device="cpu", cpu_threads="auto")).cpu_threads == "auto"


def refuse() -> int:
    raise AssertionError("reads every chunk")


def test_faiss_takes_as_much_scratch_memory_as_is_counted() -> None:
    assert INDEX_SCRATCH_BYTES == SCRATCH_BYTES


def test_a_card_is_shared_by_what_its_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, "echo 24564", monkeypatch)
    data = DataDir(tmp_path / "data")
    model, embedder = data.model("llama"), data.model("minilm")
    for folder in (model, embedder):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 4000)
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    (model / "config.json").write_text(json.dumps(config))
    engine = EngineConfig(device="cuda", max_model_len=2048, max_loras=1, trainer_gib=4)
    budget = share_card(engine, model, data, EmbedderConfig("minilm"), SearchConfig(), lambda: 4 * 384 * 1000)
    assert budget is not None
    assert budget.card == 24564 * 2**20
    assert (budget.shares["indexes"], budget.shares["a training job"]) == (
        4 * 384 * 1000 + INDEX_SCRATCH_BYTES,
        4 * GIB,
    )
    assert budget.shares["embedder"] == 2000 + ENCODER_SCRATCH_BYTES
    assert "reranker" not in budget.shares
    alone = share_card(
        engine,
        model,
        data,
        EmbedderConfig("minilm", device=Device.cpu),
        SearchConfig(index_device=IndexDevice.cpu),
        refuse,
    )
    assert alone is not None
    assert set(alone.shares) == {"a training job", "spare"}
    put_nvidia_smi(tmp_path, "exit 9", monkeypatch)
    assert share_card(engine, model, data, EmbedderConfig("minilm"), SearchConfig(), refuse) is None, (
        "vLLM's own choice"
    )
