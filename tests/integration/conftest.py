"""What the slow tier shares: one real vLLM, because a start takes most of a minute, programs to kill, and a browser."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from omegaconf import OmegaConf

from core.config import CONF_DIR
from core.layout import DataDir
from serve.engine_command import EngineConfig, build_command
from serve.hardware import fill_engine_config
from tests.fakes.adapter import write_adapter
from tests.fakes.engine_thread import EngineThread, engine_thread
from tests.fakes.warm_python import WarmPython

if TYPE_CHECKING:  # Playwright comes with the dev extra; without it the console's tests are skipped
    from playwright.sync_api import Browser

    from tests.browser import Served, Watched

REAL_MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def served_data(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """A data directory with the small models and three untrained adapters: one of them changes nothing."""
    data = DataDir(tmp_path_factory.mktemp("served"))
    data.models.symlink_to(demo_models / "models")
    write_adapter(data, "strong", REAL_MODEL, scale=0.3)
    write_adapter(data, "weak", REAL_MODEL, rank=16, scale=0.05)
    write_adapter(data, "zero", REAL_MODEL, scale=0.0)
    return data


@pytest.fixture(scope="session")
def real_vllm(served_data: DataDir) -> Iterator[EngineThread]:
    """The real vLLM with as many adapter slots as adapters, on the profile of this machine's CPU."""
    profile = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(EngineConfig), OmegaConf.load(CONF_DIR / "engine" / "cpu.yaml"))
    )
    assert isinstance(profile, EngineConfig)
    changed = dataclasses.replace(profile, max_lora_rank=16, max_loras=2, max_num_seqs=4)
    config = fill_engine_config(changed)
    with engine_thread(
        config,
        lambda engine: build_command(config, served_data.model(REAL_MODEL), REAL_MODEL, None, engine.scratch),
        served_data.root / "logs" / "vllm.log",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def programs() -> Iterator[WarmPython]:
    """What the tests of kept data start and kill: ingestion, sync, uploads, opening; each a process of its own."""
    with WarmPython(*(f"tests.fakes.{name}_command" for name in ("ingest", "sync", "upload", "open"))) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One browser for all tests of a module; each test has a profile of its own."""
    from tests.browser import running_browser

    with running_browser() as running:
        yield running


@pytest.fixture
def watched(served: "Served", browser: "Browser") -> Iterator["Watched"]:
    """The console of what a module calls `served`, with its key typed in."""
    from tests.browser import log_in, watched_page

    with watched_page(browser, served.gateway.url) as opened:
        log_in(opened.page, served.token)
        yield opened
