"""A real NF4 adapter, trained on the CPU by `python train/run.py` as a person would, and what stands afterwards."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from core.events import read_events
from core.manifest import AdapterManifest, BaseIdentity, check_adapter
from tests.fakes.tiny_llama import write_tiny_llama

REPO = Path(__file__).resolve().parent.parent.parent
STEPS = 4


def train(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(data, *arguments), cwd=data, capture_output=True, text=True, timeout=300, check=False)


def command(data: Path, *arguments: str) -> list[str]:
    fixed = ["hardware=cpu", f"paths.data_dir={data}", f"data.train={data / 'train.jsonl'}"]
    return [sys.executable, str(REPO / "train" / "run.py"), *fixed, *arguments]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """A data directory with SmolLM2, a tiny Llama and a few chats in a style of their own."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "models").mkdir()
    for model in (demo_models / "models").iterdir():
        if model.is_dir():
            (folder / "models" / model.name).symlink_to(model)
    write_tiny_llama(folder / "models" / "tiny-llama")
    for name, rows in (("train", 16), ("valid", 4)):
        chats = [
            {"messages": [{"role": "user", "content": f"Item {row}?"}, {"role": "assistant", "content": f"=> {row}!"}]}
            for row in range(rows)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder


@pytest.fixture(scope="module")
def run_folder(data: Path) -> Path:
    """SmolLM2 after a few steps."""
    ended = train(
        data,
        "model=smollm2_135m",
        "run_id=mine",
        f"data.valid={data / 'valid.jsonl'}",
        f"trainer.max_steps={STEPS}",
        "trainer.batch_size=8",
        "trainer.learning_rate=2e-3",
        "trainer.warmup=0",
        "trainer.eval_every=2",
        "trainer.save_every=2",
    )
    assert ended.returncode == 0, ended.stderr
    assert "serve/run.py adapters=[mine]" in ended.stdout
    return data / "runs" / "mine"


def test_the_events_are_whole_and_the_loss_falls(run_folder: Path) -> None:
    events = list(read_events(run_folder / "events.jsonl"))
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert all(event["grad_norm"] > 0 and event["tokens_per_s"] > 0 for event in steps)
    assert [event["step"] for event in events if event["type"] == "eval"] == [0, 2, 4]
    assert {event["step"] for event in events if event["type"] == "sample"} == {0, 2, 4}
    assert [event["step"] for event in events if event["type"] == "checkpoint"] == [2, 4]
    done = events[-1]
    assert (done["type"], done["steps"], done["tokens"]) == ("done", STEPS, steps[-1]["tokens"])
    assert (done["loss_first"], done["loss_last"]) == (steps[0]["loss"], steps[-1]["loss"])


def test_the_adapter_fits_its_base_and_is_what_vllm_takes(run_folder: Path, data: Path) -> None:
    base = BaseIdentity.of(data / "models" / "smollm2-135m-instruct")
    manifest = check_adapter(run_folder / "adapter", base, max_rank=16)
    assert manifest.quantization["kind"] == "nf4"
    assert manifest.data["train"]["rows"] == 16
    assert manifest.metrics["steps"] == STEPS
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors"}
    text = (run_folder / "adapter" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] == base.name
    assert str(data) not in text
    assert config["target_modules"] == [f"{name}_proj" for name in ("down", "gate", "k", "o", "q", "up", "v")]
    assert [config["use_dora"], config["modules_to_save"], config["lora_bias"]] == [False, None, False]
    weights = load_file(run_folder / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 30 * 7 * 2
    assert all(name.rpartition(".lora_")[2] in {"A.weight", "B.weight"} for name in weights)
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if ".lora_B." in name)


def test_the_report_and_the_configuration_stand(run_folder: Path) -> None:
    report = (run_folder / "report.md").read_text()
    assert "run_id=mine-again" in report
    assert "| before | step 2 | step 4 (published) | in the data |" in report
    assert all((run_folder / name).is_file() for name in re.findall(r"\]\((\w+\.png)\)", report))
    assert report.count(".png)") == 5
    assert len(list((run_folder / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert "max_steps: 4" in (run_folder / "config.yaml").read_text()


def test_a_finished_run_is_refused(run_folder: Path, data: Path) -> None:
    before = (run_folder / "events.jsonl").read_bytes()
    ended = train(data, "model=smollm2_135m", "run_id=mine")
    assert ended.returncode == 5
    assert "finished run" in ended.stderr
    assert (run_folder / "events.jsonl").read_bytes() == before


def test_llama_trains_by_the_same_commands(data: Path) -> None:
    ended = train(data, "model.name=tiny-llama", "run_id=llama", "trainer.max_steps=2", "trainer.batch_size=4")
    assert ended.returncode == 0, ended.stderr
    manifest = AdapterManifest.read(data / "runs" / "llama" / "adapter")
    assert manifest.template_date == "26 Jul 2024"
    assert manifest.base == BaseIdentity.of(data / "models" / "tiny-llama")


def test_pairs_widen_the_margin(data: Path) -> None:
    for name, numbers in (("pairs", range(16)), ("held_pairs", range(20, 26))):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"Item {number}?"}],
                "chosen": [{"role": "assistant", "content": f"It is {number}."}],
                "rejected": [{"role": "assistant", "content": "No idea"}],
            }
            for number in numbers
        ]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = train(
        data,
        "method=dpo",
        "model.name=tiny-llama",
        "run_id=preferred",
        f"data.train={data / 'pairs.jsonl'}",
        f"data.valid={data / 'held_pairs.jsonl'}",
        "trainer.batch_size=8",
        "trainer.max_steps=6",
        "trainer.learning_rate=1e-2",
    )
    assert ended.returncode == 0, ended.stderr
    folder = data / "runs" / "preferred"
    before, after = [event for event in read_events(folder / "events.jsonl") if event["type"] == "eval"]
    assert before["margin"] == 0
    assert after["margin"] > 0.05
    manifest = AdapterManifest.read(folder / "adapter")
    assert (manifest.method, manifest.metrics["eval_margin"]) == ("dpo", after["margin"])
    assert (folder / "margin.png").is_file()
    refused = train(data, "method=dpo", "model.name=tiny-llama", "run_id=chats")
    assert refused.returncode == 2
    assert "method=sft" in refused.stderr


def read_losses(data: Path, name: str) -> list[float]:
    events = read_events(data / "runs" / name / "events.jsonl")
    return [event["loss"] for event in events if event["type"] == "step"]


def write_ragged_chats(path: Path) -> None:
    """Fifteen chats of many lengths: no number of processes takes them evenly."""
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Item {row}?" + " and more" * (row * 7 % 11)},
                {"role": "assistant", "content": f"=> {row}!" + " yes" * (row % 5)},
            ]
        }
        for row in range(15)
    ]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))


@pytest.mark.timeout(600)
def test_two_processes_give_the_loss_of_one(data: Path) -> None:
    """Grouped lengths, accumulated gradients, a batch that is not full; data parallel, then with shared weights."""
    write_ragged_chats(data / "ragged.jsonl")
    fixed = [
        f"data.train={data / 'ragged.jsonl'}",
        "model.name=tiny-llama",
        "hardware.dtype=float32",
        "hardware.micro_batch=1",
        "quant.keep_dequantized=never",
        "trainer.epochs=2",
        "trainer.batch_size=4",
        "trainer.learning_rate=1e-2",
        "trainer.save_every=5",
    ]
    for name, more in [
        ("one", []),
        ("two", ["hardware.processes=2"]),
        ("shared", ["hardware.processes=2", "hardware.strategy=fsdp2"]),
    ]:
        ended = train(data, *fixed, f"run_id={name}", *more)
        assert ended.returncode == 0, ended.stderr
    losses = {name: read_losses(data, name) for name in ("one", "two", "shared")}
    assert len(losses["one"]) == 8
    weights = {
        name: load_file(data / "runs" / name / "adapter" / "adapter_model.safetensors")
        for name in ("one", "two", "shared")
    }
    for name in ("two", "shared"):
        assert losses[name] == pytest.approx(losses["one"], rel=1e-5)
        assert weights[name].keys() == weights["one"].keys()
        for key, value in weights["one"].items():
            assert weights[name][key].shape == value.shape
            assert (weights[name][key] - value).abs().max() < 2e-3, key
        assert (data / "runs" / name / "checkpoints" / "checkpoint-5" / "COMPLETE.json").is_file()


@pytest.mark.timeout(300)
def test_a_sweep_trains_each_of_its_jobs(data: Path) -> None:
    fixed = ["model.name=tiny-llama", "trainer.max_steps=1", "trainer.batch_size=4", "trainer.micro_batch=auto"]
    ended = train(data, *fixed, "lora.rank=8,7", "run_id=rank", "-m")
    assert ended.returncode == 1, "the second job asks for a rank that vLLM does not serve"
    assert "lora.rank: wanted one that vLLM serves" in ended.stderr
    table = [line for line in ended.stdout.splitlines() if line.startswith("| rank-")]
    assert [row.split(" | ")[:2] for row in table] == [["| rank-0", "lora.rank=8"], ["| rank-1", "lora.rank=7"]]
    assert (data / "runs" / "rank-0" / "adapter" / "manifest.json").is_file()
    assert not (data / "runs" / "rank-1").exists()
    found = re.search(r"micro_batch: (\w+)", (data / "runs" / "rank-0" / "config.yaml").read_text())
    assert found is not None
    assert found[1] in {"1", "2", "4"}, "auto is resolved in what a resumed run reads"


def test_an_interrupted_run_goes_on_where_it_was(data: Path) -> None:
    arguments = ["model.name=tiny-llama", "run_id=stopped", "trainer.epochs=1000", "trainer.batch_size=4"]
    process = subprocess.Popen(command(data, *arguments), cwd=data, stderr=subprocess.PIPE, text=True)
    folder = data / "runs" / "stopped"
    deadline = time.monotonic() + 120
    while not any(event["type"] == "step" for event in read_events(folder / "events.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 143, stderr
    events = list(read_events(folder / "events.jsonl"))
    assert [event["type"] for event in events[-2:]] == ["checkpoint", "error"]
    stopped_at = events[-2]["step"]
    assert not (folder / "adapter").exists()

    refused = train(data, *arguments)
    assert refused.returncode == 5
    assert "resume=auto" in refused.stderr
    process = subprocess.Popen(command(data, *arguments, "resume=auto"), cwd=data, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while list(read_events(folder / "events.jsonl"))[-1]["type"] != "step":
        assert process.poll() is None
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    resumed = [event for event in read_events(folder / "events.jsonl") if event["type"] == "step"]
    steps = [event["step"] for event in resumed]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > stopped_at


def test_without_weights_it_says_how_to_import_them(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(REPO / "train" / "run.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 4
    assert "python scripts/models.py import PATH --name llama-3.2-3b-instruct" in ended.stderr
    assert not (tmp_path / "data" / "runs").exists()


def test_a_check_shows_the_data_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    """Repeated rows, overlap and the marked sample, in a data directory of its own; the shown command is the run's."""
    (tmp_path / "models").symlink_to(data / "models")
    rows = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join([*rows, rows[2]]))
    arguments = ["model=smollm2_135m", f"data.valid={data / 'valid.jsonl'}"]
    ended = train(tmp_path, *arguments, "check_only=true")
    assert ended.returncode == 0, ended.stderr
    assert "(lines 17 = 3)" in ended.stdout
    assert "4 held-out rows that are training rows too" in ended.stdout
    assert "⟦=> 0!<|im_end|>⟧" in ended.stdout
    assert ended.stdout.endswith(
        f"next: {shlex.join(['python', 'train/run.py', *command(tmp_path, *arguments)[2:]])}\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "train.jsonl"]


def test_a_check_fails_where_nothing_is_left_to_learn(data: Path) -> None:
    before = sorted((data / "runs").rglob("*")) if (data / "runs").exists() else []
    ended = train(data, "model=smollm2_135m", "check_only=true", "trainer.max_length=20")
    assert ended.returncode == 3
    assert "16 faults" in ended.stderr
    assert "Raise trainer.max_length" in ended.stderr
    assert (sorted((data / "runs").rglob("*")) if (data / "runs").exists() else []) == before


def test_faulty_rows_are_named_before_anything_loads(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{"messages": "no"}\n')
    ended = train(data, "model=smollm2_135m", "run_id=bad", f"data.valid={path}", "trainer.max_length=4096")
    assert ended.returncode == 3
    assert "line 1, messages[0].role" in ended.stderr
    assert "line 2" in ended.stderr
    assert not (data / "runs" / "bad").exists()
