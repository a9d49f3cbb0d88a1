"""What is checked before anything starts: every fault named, all at once."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from core.layout import DataDir
from core.manifest import AdapterManifest, BaseIdentity, ModelKind, ModelManifest, hash_files
from serve.adapter_check import find_unservable
from serve.answering import AssistantConfig
from serve.catalog import EntryKind
from serve.engine_command import EngineConfig
from serve.gateway import GatewayConfig
from serve.preflight import ModelChoice, Plan, ServeConfig, fit_loras, make_plan
from tests.fakes.trainer import write_adapter_config, write_weights

TEMPLATE = "{{ messages }}"
DATED = "{{ date_string }}{{ messages }}"


def write_model(data: DataDir, name: str, kind: ModelKind = ModelKind.LLM, template: str = TEMPLATE) -> None:
    folder = data.model(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": name}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(template)
    ModelManifest(name, kind, "test", None, "none", hash_files(folder)).write(folder)


def write_run(data: DataDir, run_id: str, base: str, rank: int = 8, date: str | None = None, **adapter: Any) -> Path:
    folder = data.run(run_id) / "adapter"
    folder.mkdir(parents=True)
    write_adapter_config(folder / "adapter_config.json", base, rank)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **adapter}))
    write_weights(folder / "adapter_model.safetensors", rank, float(sum(run_id.encode())))
    AdapterManifest(
        run_id, BaseIdentity.of(data.model(base)), "sft", {"rank": rank}, {}, {}, 1, date, {}, {}, 7
    ).write(folder)  # fmt: skip
    return folder


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path)
    write_model(data, "base")
    write_model(data, "all-minilm-l6-v2", ModelKind.EMBEDDER)
    return data


@pytest.fixture
def plan(data: DataDir) -> Callable[..., Plan]:
    """Make a plan and close its socket."""

    def make(*, has_key: bool = False, stores: tuple[str, ...] = ("s",), **config: Any) -> Plan:
        config.setdefault("gateway", GatewayConfig(port=0))
        made = make_plan(ServeConfig(**config), data, set(stores), has_key=has_key)
        made.listener.close()
        return made

    return make


def test_the_only_model_is_taken_with_every_run_that_fits(data: DataDir, plan: Callable[..., Plan]) -> None:
    write_run(data, "one", "base")
    write_run(data, "two", "base", rank=20)
    (data.run("unfinished")).mkdir()
    made = plan()
    assert made.model.name == "base"
    assert [adapter.run_id for adapter in made.adapters] == ["one", "two"]
    assert made.max_lora_rank == 32
    kinds = {name: entry.kind for name, entry in made.catalog.entries.items()}
    assert kinds["base"] is EntryKind.BASE
    assert kinds["one"] is EntryKind.ALIAS
    assert kinds[made.adapters[0].name] is EntryKind.ADAPTER
    assert made.adapters[0].name.startswith("ft:base:local:one:")


def test_an_adapters_name_follows_its_weights(data: DataDir, plan: Callable[..., Plan]) -> None:
    folder = write_run(data, "one", "base")
    before = plan().adapters[0].name
    assert plan().adapters[0].name == before
    manifest = AdapterManifest.read(folder)
    write_weights(folder / "adapter_model.safetensors", 8, 0.5)
    manifest.write(folder)
    assert plan().adapters[0].name != before


def test_runs_that_do_not_fit_are_left_out_with_the_reason(data: DataDir, plan: Callable[..., Plan]) -> None:
    write_model(data, "other")
    write_run(data, "foreign", "other")
    write_run(data, "dora", "base", use_dora=True)
    (write_run(data, "changed", "base") / "adapter_model.safetensors").write_bytes(b"tampered")
    write_run(data, "good", "base")
    made = plan(model=ModelChoice("base"))
    assert [adapter.run_id for adapter in made.adapters] == ["good"]
    reasons = "\n".join(made.left_out)
    for part in ("foreign does not fit base model base", "adapter dora: vLLM cannot serve DoRA", "has changed"):
        assert part in reasons


def test_a_run_asked_for_by_name_must_fit(data: DataDir, plan: Callable[..., Plan]) -> None:
    write_run(data, "big", "base", rank=64)
    with pytest.raises(ConfigError, match=r"(?s)big.*rank.*nothing"):
        plan(adapters=["big", "nothing"], engine=EngineConfig(max_lora_rank=16))
    assert plan(adapters=[]).adapters == []


def test_the_adapters_choose_the_base(data: DataDir, plan: Callable[..., Plan]) -> None:
    write_model(data, "other")
    write_run(data, "of-other", "other")
    write_run(data, "of-base", "base")
    assert plan(adapters=["of-other"]).model.name == "other"
    with pytest.raises(ConfigError, match="one base model"):
        plan(adapters=["of-other", "of-base"])
    with pytest.raises(ConfigError, match=r"(?s)llama-3\.2-3b-instruct.*base, other.*scripts/models\.py get"):
        plan()


def test_a_templates_date_comes_from_the_adapters(data: DataDir, plan: Callable[..., Plan]) -> None:
    assert plan().template_date is None
    write_model(data, "dated", template=DATED)
    assert plan(model=ModelChoice("dated"), template_date="1 Jan 2026").template_date == "1 Jan 2026"
    write_run(data, "july", "dated", date="26 Jul 2024")
    assert plan(model=ModelChoice("dated"), template_date="1 Jan 2026").template_date == "26 Jul 2024"
    write_run(data, "may", "dated", date="1 May 2025")
    with pytest.raises(ConfigError, match="1 May 2025, 26 Jul 2024"):
        plan(model=ModelChoice("dated"))


def test_assistants_are_listed_after_the_models(data: DataDir, plan: Callable[..., Plan]) -> None:
    write_run(data, "mine", "base")
    made = plan(assistants={"helper": AssistantConfig(model="mine", stores=["s"])})
    assert list(made.catalog.entries)[-1] == "helper"
    assert made.assistants["helper"].engine_model == made.adapters[0].name


def test_all_faults_come_at_once(data: DataDir, plan: Callable[..., Plan]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            plan(
                gateway=GatewayConfig(port=port),
                assistants={
                    "base": AssistantConfig(model="base", stores=["s"]),
                    "bad name": AssistantConfig(model="base", stores=["s"]),
                    "lost": AssistantConfig(model="nothing", stores=["s"]),
                    "empty": AssistantConfig(model="base", stores=["s", "missing"]),
                    "deaf": AssistantConfig(model="all-minilm-l6-v2", stores=["s"]),
                },
                adapters=["no-run"],
            )
    message = caught.value.message
    for part in (
        f"127.0.0.1:{port}, found that it is in use",
        "assistants.base: the name is taken",
        "assistants.bad name",
        "assistants.lost.model: wanted one of base; found 'nothing'",
        "assistants.empty.stores",
        "action=ingest store=missing",
        "assistants.deaf.model",
        "no-run",
    ):
        assert part in message


def test_an_address_for_others_needs_a_key(plan: Callable[..., Plan]) -> None:
    open_to_all = GatewayConfig(host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match=r"scripts/keys\.py create"):
        plan(gateway=open_to_all)
    assert plan(gateway=open_to_all, has_key=True).model.name == "base"


def test_a_certificate_must_be_one(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    with pytest.raises(ConfigError, match="tls_cert and tls_key together"):
        GatewayConfig(tls_cert="cert.pem")
    (tmp_path / "cert.pem").write_text("nothing")
    for cert in ("cert.pem", "missing.pem"):
        files = GatewayConfig(port=0, tls_cert=str(tmp_path / cert), tls_key=str(tmp_path / "cert.pem"))
        with pytest.raises(ConfigError, match=rf"gateway\.tls_cert.*{cert}"):
            plan(gateway=files)


def test_an_adapter_of_the_command_line_is_local_unless_it_is_granted(data: DataDir, plan: Callable[..., Plan]) -> None:
    write_run(data, "one", "base")
    write_run(data, "two", "base")
    catalog = plan(gateway=GatewayConfig(port=0, granted_adapters=["two"])).catalog
    assert [name for name in ("one", "two") if catalog.entries[name].is_visible("sales")] == ["two"]
    assert [name for name in ("one", "two") if catalog.entries[name].is_visible("local")] == ["one", "two"]
    with pytest.raises(ConfigError, match=r"granted_adapters.*one, two.*three"):
        plan(gateway=GatewayConfig(port=0, granted_adapters=["three"]))


@pytest.mark.parametrize("name", ["nothing", "all-minilm-l6-v2", "../base"])
def test_a_model_that_is_not_one_is_refused(plan: Callable[..., Plan], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        plan(model=ModelChoice(name))


def test_a_model_that_is_not_there_is_told_in_sentences(plan: Callable[..., Plan]) -> None:
    with pytest.raises(
        ConfigError, match=r"Run: python scripts/models\.py list\. Models of this kind that are there: base\."
    ):
        plan(model=ModelChoice("nothing"))


def test_a_model_with_a_missing_file_is_refused(data: DataDir, plan: Callable[..., Plan]) -> None:
    (data.model("base") / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json missing"):
        plan()


def test_a_full_disk_is_refused(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.preflight.MIN_FREE_BYTES", 2**62)
    with pytest.raises(ConfigError, match="free disk"):
        plan()


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({"init_lora_weights": True}, []),
        ({"init_lora_weights": "gaussian", "bias": "none"}, []),
        ({"init_lora_weights": "pissa"}, ["an initialization that changed the base"]),
        ({"use_dora": True, "init_lora_weights": True}, ["DoRA"]),
        ({"modules_to_save": ["lm_head"], "init_lora_weights": True}, ["modules_to_save"]),
        ({"bias": "all", "init_lora_weights": True}, ["a bias"]),
        ({"alora_invocation_tokens": [1], "init_lora_weights": True}, ["aLoRA"]),
    ],
)
def test_what_vllm_refuses_is_found_before_it_starts(adapter: dict[str, Any], expected: list[str]) -> None:
    assert find_unservable(adapter) == expected


@pytest.mark.parametrize(("served", "places"), [(0, 4), (3, 4), (9, 9), (100, 32)])
def test_the_engine_has_a_place_for_each_adapter_and_for_some_to_come(served: int, places: int) -> None:
    assert fit_loras(served) == places
