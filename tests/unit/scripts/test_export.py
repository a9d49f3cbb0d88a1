"""scripts/export.py: a merged model is whole, is measured against what training saw, and says where it came from."""

import json

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from core.config import CONF_DIR
from core.errors import AdapterMismatch, ConfigError, Conflict, ContractError, NotFound
from core.layout import DataDir
from core.manifest import ADAPTER_MANIFEST, AdapterManifest, ModelKind, ModelManifest, hash_files, verify_files
from scripts.export import ExportConfig, Onto, check_export, main
from tests.fakes.adapter import write_adapter
from tests.fakes.tiny_llama import write_tiny_llama
from train.checks import to_plain
from train.config import DataConfig, TrainConfig

BASE = "tiny-llama"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """A data directory with a tiny Llama and a run `mine` that says it was trained on NF4."""
    data = DataDir(tmp_path_factory.mktemp("export"))
    write_tiny_llama(data.model(BASE))
    ModelManifest(BASE, ModelKind.LLM, "random", None, "Apache-2.0", hash_files(data.model(BASE))).write(
        data.model(BASE)
    )
    adapter = write_adapter(data, "mine", BASE, scale=0.1, template_date="26 Jul 2024")
    manifest = AdapterManifest.read(adapter)
    manifest.quantization = {"kind": "nf4", "double": True, "dtype": "torch.float32"}
    manifest.write(adapter)
    chats = [
        {"messages": [{"role": "user", "content": f"Item {row}?"}, {"role": "assistant", "content": f"=> {row}!"}]}
        for row in range(3)
    ]
    valid = data.root / "valid.jsonl"
    valid.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    config = TrainConfig(data=DataConfig(train=str(valid), valid=str(valid)))
    (data.run("mine") / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    return data


def configure(data: DataDir, **changes: object) -> ExportConfig:
    config = ExportConfig(**{"run": "mine", **changes})  # type: ignore[arg-type]
    config.paths.data_dir = str(data.root)
    return config


def export(data: DataDir, *overrides: str) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        main(compose("export", ["run=mine", f"paths.data_dir={data.root}", "hardware=cpu", *overrides]))


def test_the_merged_model_is_whole_and_says_where_it_came_from(
    made: DataDir, capsys: pytest.CaptureFixture[str]
) -> None:
    export(made)
    base, manifest = ModelManifest.read(made.model(BASE)), ModelManifest.read(made.model("mine-merged"))
    verify_files(made.model("mine-merged"), manifest.files)
    assert (manifest.name, manifest.kind, manifest.licence) == ("mine-merged", ModelKind.LLM, "Apache-2.0")
    assert manifest.source == f"run mine merged onto {BASE} (original)"
    changed = {name for name in base.files | manifest.files if base.files.get(name) != manifest.files.get(name)}
    assert changed == {"model.safetensors"}
    shown = capsys.readouterr().out
    assert "3 held-out rows" in shown
    assert all(way in shown for way in ("as trained", "original weights", "NF4-rounded weights", "onto=original: "))
    assert "+model.name=mine-merged" in shown
    with pytest.raises(Conflict, match="exists already"):
        export(made)


def test_each_way_of_merging_gives_other_weights(made: DataDir, capsys: pytest.CaptureFixture[str]) -> None:
    for onto in ("original", "nf4"):
        export(made, f"onto={onto}", f"output=onto-{onto}", "measure=false")
        assert f"onto={onto}: " in capsys.readouterr().out
    original, rounded = (load_file(made.model(f"onto-{onto}") / "model.safetensors") for onto in ("original", "nf4"))
    differing = {name for name, weight in original.items() if not torch.equal(weight, rounded[name])}
    assert len(differing) == 2 * 7  # every linear layer, nothing else


def test_a_run_without_held_out_rows_is_merged_unmeasured(
    made: DataDir, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = made.run("mine") / "config.yaml"
    before = path.read_text()
    path.write_text(before.replace("valid.jsonl", "gone.jsonl"))
    try:
        with caplog.at_level("INFO"):
            export(made, "output=unmeasured")
    finally:
        path.write_text(before)
    assert "loss" not in capsys.readouterr().out
    assert ModelManifest.read(made.model("unmeasured")).name == "unmeasured"


def test_what_cannot_be_merged_is_refused_before_anything_loads(made: DataDir) -> None:
    write_adapter(made, "plain", BASE)
    with pytest.raises(NotFound, match="finished run"):
        check_export(configure(made, run="nothing"))
    with pytest.raises(ConfigError, match="onto=original"):
        check_export(configure(made, run="plain", onto=Onto.nf4))
    with pytest.raises(ConfigError, match="output"):
        configure(made, output="../elsewhere")


def test_an_adapter_of_another_base_is_refused(made: DataDir) -> None:
    folder = write_adapter(made, "foreign", BASE)
    path = folder / ADAPTER_MANIFEST
    values = json.loads(path.read_text())
    values["base"]["config_sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(AdapterMismatch, match="config_sha256"):
        check_export(configure(made, run="foreign"))


def test_a_damaged_base_is_refused(made: DataDir) -> None:
    path = made.model(BASE) / "generation_config.json"
    before = path.read_text()
    path.write_text("{}")
    try:
        with pytest.raises(ContractError, match="generation_config"):
            check_export(configure(made))
    finally:
        path.write_text(before)
