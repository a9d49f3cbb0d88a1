"""Promise T6: thirty hostile adapters are each refused, with the name of what is wrong; nothing of them is loaded."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import LoamError
from core.layout import DataDir
from core.manifest import AdapterManifest, BaseIdentity
from serve.adapter_check import MAX_HEADER_BYTES, check_served_adapter
from tests.fakes.base_model import write_base
from tests.fakes.trainer import write_adapter_config, write_weights

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def write_adapter(folder: Path, base: BaseIdentity, rank: int = 8) -> None:
    folder.mkdir(parents=True)
    write_weights(folder / "adapter_model.safetensors", rank, 1.0)
    write_adapter_config(folder / "adapter_config.json", base.name, rank)
    seal(folder, base, rank)


def seal(folder: Path, base: BaseIdentity, rank: int = 8) -> None:
    """Write a manifest that fits what is there now, as somebody would who means it."""
    AdapterManifest("run", base, "sft", {"rank": rank}, {}, {}, 1, None, {}, {}, 1).write(folder)


def edit_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def seal_and_check(folder: Path, base: BaseIdentity, *, is_sealed: bool) -> None:
    if is_sealed:
        seal(folder, base)
    check_served_adapter(folder, base, 16)


def put(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def edit_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        encoded = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    return edit


def set_length(length: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return edit


def link(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/passwd")


def append(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b"x" * 99)


def set_last_number(kind: str, number: bytes) -> Callable[[Path], None]:
    """Change the last number of the file, whose weights become so many of another kind."""

    def recast_all(header: dict[str, Any]) -> None:
        for entry in header.values():
            recast(entry, kind)

    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        edit_header(recast_all)(folder)
        path.write_bytes(path.read_bytes()[: -len(number)] + number)

    return edit


def recast(entry: dict[str, Any], kind: str) -> None:
    """Call the bytes of a weight of rank 8 numbers of another kind: the narrower, the more rows or columns."""
    factor = {"F32": 1, "F16": 2, "BF16": 2}[kind]
    entry.update(dtype=kind, shape=[size if size == 8 else size * factor for size in entry["shape"]])


def rename(old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / old).rename(folder / new)


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
BEFORE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle for weights": (put("adapter_model.bin", b"cposix\nsystem\n(S'true'\ntR."), "adapter_model.bin"),
    "a pickle beside the weights": (put("optimizer.pt", b"\x80\x04."), "optimizer.pt"),
    "a pickle by another name": (put("x.pkl", b"\x80\x04."), "x.pkl"),
    "an array": (put("a.npy", b"\x93NUMPY"), "a.npy"),
    "a link": (link, CONFIG),
    "a linked folder": (lambda folder: (folder / "more").symlink_to("/etc"), "more"),
    "code": (put("modeling.py", b"import os"), "modeling.py"),
    "a file of the tokenizer": (put("tokenizer.json", b"{}"), "tokenizer.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "weights by another name": (rename(WEIGHTS, "model.safetensors"), WEIGHTS),
    "another rank": (edit_config(r=16), "r 16"),
    "ranks by layer": (edit_config(rank_pattern={"q_proj": 512}), "by layer"),
    "DoRA": (edit_config(use_dora=True), "DoRA"),
    "whole modules": (edit_config(modules_to_save=["lm_head"]), "modules_to_save"),
    "a bias": (edit_config(bias="all"), "bias"),
    "another initialization": (edit_config(init_lora_weights="pissa"), "initialization"),
    "another kind": (edit_config(peft_type="IA3"), "peft_type"),
    "a class to import": (edit_config(auto_mapping={"base_model_class": "os", "parent_library": "os"}), "auto_mapping"),
    "no configuration": (put(CONFIG, b"[]"), CONFIG),
    "a broken configuration": (put(CONFIG, b"{" * 100_000), CONFIG),
    "a huge configuration": (put(CONFIG, b" " * 2**21), "2097152"),
    "a giant header": (set_length(2**62), str(2**62)),
    "a header past the end": (set_length(MAX_HEADER_BYTES), str(MAX_HEADER_BYTES)),
    "an empty file": (put(WEIGHTS, b""), WEIGHTS),
    "a header that is no JSON": (put(WEIGHTS, struct.pack("<Q", 4) + b"abcd"), "no JSON"),
    "weights of another name": (edit_header(lambda h: h.update({"lm_head.weight": h.pop(NAME)})), "lm_head.weight"),
    "weights of another shape": (edit_header(lambda h: h[NAME].update(shape=[4, 8])), "shape"),
    "weights of another type": (edit_header(lambda h: h[NAME].update(dtype="U8")), NAME),
    "weights that overlap": (edit_header(lambda h: h[NAME].update(data_offsets=[64, 192])), "overlap"),
    "weights past the end": (edit_header(lambda h: h[NAME].update(data_offsets=[0, 2**40])), NAME),
    "bytes behind the weights": (append, "bytes of weights"),
    "NaN among the weights": (set_last_number("F32", b"\x01\x00\x80\x7f"), "NaN or infinity"),
    "infinity among the weights": (set_last_number("F32", b"\x00\x00\x80\xff"), "NaN or infinity"),
    "NaN in bfloat16": (set_last_number("BF16", b"\xc0\x7f"), "NaN or infinity"),
    "infinity in half precision": (set_last_number("F16", b"\x00\x7c"), "NaN or infinity"),
}
AFTER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed weights": (put(WEIGHTS, b"x"), f"{WEIGHTS} has changed"),
    "a changed configuration": (edit_config(r=16), f"{CONFIG} has changed"),
    "a broken manifest": (put("manifest.json", b"{}"), "manifest"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest"),
}


@pytest.fixture
def base(tmp_path: Path) -> BaseIdentity:
    return BaseIdentity.of(write_base(DataDir(tmp_path), "base"))


def test_a_good_one_passes(tmp_path: Path, base: BaseIdentity) -> None:
    write_adapter(tmp_path / "adapter", base)
    assert check_served_adapter(tmp_path / "adapter", base, 16).run_id == "run"


@pytest.mark.parametrize("name", [*BEFORE, *AFTER])
def test_each_hostile_one_is_refused_by_name(
    tmp_path: Path, base: BaseIdentity, name: str, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "adapter"
    write_adapter(folder, base)
    spoil, word = BEFORE.get(name) or AFTER[name]
    spoil(folder)
    with pytest.raises(LoamError) as refused:
        seal_and_check(folder, base, is_sealed=name in BEFORE)
    assert word in refused.value.message
    record_property("hostile_adapters", 1)


def test_an_adapter_of_another_base_or_too_large_is_refused(tmp_path: Path, base: BaseIdentity) -> None:
    write_adapter(tmp_path / "adapter", base, rank=32)
    with pytest.raises(LoamError, match="rank: trained with 32"):
        check_served_adapter(tmp_path / "adapter", base, 16)
    other = write_base(DataDir(tmp_path), "other")
    (other / "config.json").write_text('{"hidden_size": 1}')
    with pytest.raises(LoamError, match=r"config_sha256"):
        check_served_adapter(tmp_path / "adapter", BaseIdentity.of(other), 32)


def test_there_are_thirty() -> None:
    assert len(BEFORE) + len(AFTER) >= 30
