"""core.manifest: an adapter is served only when every byte and every identity fits."""

import json
from pathlib import Path

import pytest

from core.errors import AdapterMismatch, ContractError, InvalidFile, NotFound
from core.manifest import (
    AdapterManifest,
    BaseIdentity,
    Canary,
    ModelKind,
    ModelManifest,
    Parity,
    check_adapter,
    hash_files,
    list_adapters,
    name_checkpoint_adapter,
    read_chat_template,
    verify_files,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    folder = tmp_path / "runs" / "mine" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    AdapterManifest(
        run_id="mine",
        base=BaseIdentity.of(base),
        method="sft",
        lora={"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ["q_proj"]},
        quantization={"kind": "nf4"},
        data={},
        seed=0,
        template_date=None,
        metrics={},
        versions={},
        created_at=0,
    ).write(folder)
    return folder


def test_a_fitting_adapter_is_accepted(adapter: Path, base: Path) -> None:
    manifest = check_adapter(adapter, BaseIdentity.of(base), max_rank=16)
    assert manifest.run_id == "mine"
    assert set(manifest.files) == {"adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "config_sha256"),
        ("tokenizer.json", "tokenizer_sha256"),
        ("chat_template.jinja", "chat_template_sha256"),
    ],
)
def test_each_difference_in_the_base_is_named(adapter: Path, base: Path, file: str, key: str) -> None:
    (base / file).write_text("changed")
    with pytest.raises(AdapterMismatch, match=key):
        check_adapter(adapter, BaseIdentity.of(base), max_rank=16)


def test_all_differences_come_at_once(adapter: Path, base: Path) -> None:
    other = base.rename(base.with_name("other"))
    (other / "config.json").write_text("changed")
    with pytest.raises(AdapterMismatch) as caught:
        check_adapter(adapter, BaseIdentity.of(other), max_rank=8)
    for part in ("name: trained on 'tiny', served is 'other'", "config_sha256", "trained with 16, served at most 8"):
        assert part in caught.value.message


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_damaged_files_are_named(adapter: Path, base: Path, damage: str) -> None:
    weights = adapter / "adapter_model.safetensors"
    if damage == "change":
        weights.write_bytes(b"weight$")
    elif damage == "remove":
        weights.unlink()
    else:
        (adapter / "extra.json").write_text("{}")
    with pytest.raises(
        ContractError, match=r"extra\.json is not in" if damage == "add" else "adapter_model.safetensors"
    ):
        check_adapter(adapter, BaseIdentity.of(base), max_rank=16)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter.pt", "deep/x.pkl", "W.PTH"])
def test_code_bearing_files_are_refused_by_name(adapter: Path, name: str) -> None:
    path = adapter / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(InvalidFile, match=path.name):
        hash_files(adapter)


def test_links_are_refused(adapter: Path) -> None:
    (adapter / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(InvalidFile, match=r"config\.json"):
        hash_files(adapter)


def test_a_broken_manifest_says_what_to_do(adapter: Path, base: Path) -> None:
    path = adapter / "manifest.json"
    for content in ("not json", "[]", "{}", json.dumps({"base": {}})):
        path.write_text(content)
        with pytest.raises(ContractError, match=r"manifest\.json"):
            AdapterManifest.read(adapter)
    path.unlink()
    with pytest.raises(NotFound, match=r"python train/run\.py"):
        check_adapter(adapter, BaseIdentity.of(base), 16)


def test_a_model_manifest_comes_back(base: Path) -> None:
    manifest = ModelManifest("tiny", ModelKind.LLM, "folder", None, "MIT", hash_files(base))
    manifest.write(base)
    assert ModelManifest.read(base) == manifest
    verify_files(base, manifest.files)


def test_the_template_is_found_in_either_place(base: Path) -> None:
    assert read_chat_template(base) == "{{ messages }}"
    (base / "chat_template.jinja").unlink()
    (base / "tokenizer_config.json").write_text('{"chat_template": "old place"}')
    assert read_chat_template(base) == "old place"
    (base / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ContractError, match="wanted a chat template"):
        read_chat_template(base)


PARITY = Parity(16, 1.0, 100, 1.0, 0.001, 0.01, None, "float32", {"vllm": "1"}, 5)
CANARY = Canary([1, 2], [3], [4], "yes", "no", 2.5)


def test_what_is_found_out_later_comes_back_and_leaves_the_files_alone(adapter: Path, base: Path) -> None:
    manifest = AdapterManifest.read(adapter)
    assert (manifest.parity, manifest.canary) == (None, None)
    files = dict(manifest.files)
    manifest.parity, manifest.canary = PARITY, CANARY
    manifest.save(adapter)
    again = check_adapter(adapter, BaseIdentity.of(base), max_rank=16)
    assert (again.parity, again.canary, again.files) == (PARITY, CANARY, files)


def test_saving_what_was_found_does_not_vouch_for_changed_weights(adapter: Path, base: Path) -> None:
    manifest = AdapterManifest.read(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    manifest.canary = CANARY
    manifest.save(adapter)
    with pytest.raises(ContractError, match="has changed"):
        check_adapter(adapter, BaseIdentity.of(base), max_rank=16)


def test_a_manifest_from_before_parity_is_still_read(adapter: Path) -> None:
    path = adapter / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in ("parity", "canary")}))
    assert AdapterManifest.read(adapter).canary is None
    path.write_text(json.dumps({**values, "canary": {"prompt_ids": [1]}}))
    with pytest.raises(ContractError, match="not an adapter manifest"):
        AdapterManifest.read(adapter)


def test_the_adapters_of_a_run_and_of_its_checkpoints_are_found_by_name(tmp_path: Path) -> None:
    wanted = ["adapter", name_checkpoint_adapter(5), name_checkpoint_adapter(10)]
    for name in (*wanted, "adapter-5.old", "adapters", ".adapter-15.abc.tmp"):
        (tmp_path / name).mkdir()
    assert {path.name for path in list_adapters(tmp_path)} == set(wanted)
