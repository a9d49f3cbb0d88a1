"""The serving bench's load counts what a server answers, on the engine's socket and through the gateway in front."""

import asyncio
from pathlib import Path

import httpx
import pytest

from scripts.bench_gpu_folders import make_chat_tokenizer
from scripts.bench_gpu_serve import Load, measure_load
from scripts.bench_gpu_steps import Wrong
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, running_gateway


async def ask_gateway(url: str, models: list[str]) -> Load:
    async with httpx.AsyncClient(base_url=url) as client:
        return await measure_load(client, models, concurrency=4, rounds=3, max_tokens=5)


def test_the_load_is_counted_on_the_socket_and_through_the_gateway(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        gateway.script(reply="one two three four five six seven")
        through = asyncio.run(ask_gateway(gateway.url, [BASE, ALIAS]))
        gateway.engine.client.headers.update(gateway.engine.headers)
        direct = gateway.run(measure_load(gateway.engine.client, [BASE, ADAPTER], 4, 3, 5))
        for load in (through, direct):
            assert load.requests == 12
            assert load.tokens_per_s * load.seconds == pytest.approx(12 * 5)
        asked = [request["model"] for request in gateway.state()["requests"] if "messages" in request]
        assert asked.count(ADAPTER) == 12


def test_a_refusal_is_no_speed(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway, pytest.raises(Wrong, match="404"):
        asyncio.run(ask_gateway(gateway.url, ["no-such-model"]))


def test_the_random_models_tokenizer_has_a_template_and_its_size() -> None:
    tokenizer = make_chat_tokenizer(320)
    assert len(tokenizer) == 320
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "word word"}], tokenize=True, return_dict=False)
    assert ids.count(tokenizer.convert_tokens_to_ids("word")) == 2
