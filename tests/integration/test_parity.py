"""PEFT and the real vLLM on the same adapter: the same tokens, the same log-probabilities, and a canary that works."""

from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer

from core.errors import ContractError, EngineError
from core.layout import DataDir
from scripts.parity import Answer, ask_peft, ask_vllm, check_parity, choose_canary, compare, load_peft
from scripts.score_exact import Question, answer_all
from serve.engine_command import EngineConfig
from serve.hardware import fill_engine_config
from serve.progress import CountProgress
from tests.fakes.engine_thread import EngineThread
from tests.integration.conftest import REAL_MODEL

ADAPTER = "weak"
"""It changes every answer; the stronger one has activations so large that bfloat16 rounds them by whole nats."""
MAX_TOKENS = 6
TEXTS = ("The capital of France is", "Two and two make", "Water boils at")
TOLERANCE = 0.5
"""Nats; generous, because the CPU decides the dtype."""


@pytest.fixture(scope="module")
def loaded(real_vllm: EngineThread, served_data: DataDir) -> Iterator[EngineThread]:
    """The real server with the adapter that changes its answers."""
    body = {"lora_name": ADAPTER, "lora_path": str(served_data.run(ADAPTER) / "adapter")}
    real_vllm.request("POST", "/v1/load_lora_adapter", json=body).raise_for_status()
    yield real_vllm
    real_vllm.request("POST", "/v1/unload_lora_adapter", json={"lora_name": ADAPTER}).raise_for_status()


@pytest.fixture(scope="module")
def prompts(served_data: DataDir) -> list[list[int]]:
    """A few beginnings as token ids."""
    tokenizer = Tokenizer.from_file(str(served_data.model(REAL_MODEL) / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.fixture(scope="module")
def ours(served_data: DataDir, prompts: list[list[int]]) -> list[Answer]:
    """PEFT's answers, in the dtype in which the server runs."""
    config = fill_engine_config(EngineConfig(device="cpu"))
    model = load_peft(served_data.model(REAL_MODEL), served_data.run(ADAPTER) / "adapter", config)
    return ask_peft(model, prompts, MAX_TOKENS, set())


@pytest.fixture(scope="module")
def served(loaded: EngineThread, prompts: list[list[int]]) -> dict[str, list[Answer]]:
    """The server's answers, with the adapter and without."""
    names = (ADAPTER, REAL_MODEL)
    return {name: loaded.run(ask_vllm(loaded.engine, name, prompts, MAX_TOKENS, set())) for name in names}


def test_vllm_answers_as_peft_does(ours: list[Answer], served: dict[str, list[Answer]]) -> None:
    found = compare(ours, served[ADAPTER], "the server's", {})
    assert found.tokens == MAX_TOKENS * len(TEXTS)
    check_parity(found, TOLERANCE)
    assert found.equal_tokens >= 0.5
    idle = compare(ours, served[REAL_MODEL], "the server's", {})
    assert idle.equal_tokens < 0.2  # the comparison sees an adapter that is not applied
    with pytest.raises(ContractError):
        check_parity(idle, TOLERANCE)


def begin(answer: Answer) -> Answer:
    """Return an answer's first two tokens: rounding seldom turns those."""
    return Answer(answer.tokens[:2], answer.logprobs[:2], answer.tops[:2])


def test_the_server_asks_the_canary_and_sees_an_idle_adapter(
    loaded: EngineThread, prompts: list[list[int]], ours: list[Answer], served: dict[str, list[Answer]]
) -> None:
    class Words:
        def decode(self, tokens: list[int]) -> str:
            return " ".join(map(str, tokens))

    mine, theirs = [begin(answer) for answer in ours], [begin(answer) for answer in served[ADAPTER]]
    base = [begin(answer) for answer in served[REAL_MODEL]]
    canary = choose_canary(prompts, mine, theirs, base, Words())
    assert canary is not None
    loaded.run(loaded.engine.server.check_canary(ADAPTER, canary))
    with pytest.raises(EngineError, match="answers as the base"):
        loaded.run(loaded.engine.server.check_canary(REAL_MODEL, canary))


def test_questions_are_scored_through_the_chat_route(loaded: EngineThread) -> None:
    questions = [Question([{"role": "user", "content": text}], "") for text in TEXTS]
    progress = CountProgress("asking", len(questions))
    base, adapter = (
        loaded.run(answer_all(loaded.engine, name, questions, 3, 2, progress)) for name in (REAL_MODEL, ADAPTER)
    )
    assert len(base) == len(adapter) == len(questions)
    assert base != adapter
