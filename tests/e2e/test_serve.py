"""The journey as a user makes it: train, ingest, serve, ask with the stock client; then kill -9 and Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from core.layout import DataDir
from tests.e2e.program import MODEL, REPO, START_TIMEOUT_S, Program, read_words, running_program
from tests.fakes.adapter import write_adapter

STYLE = "Stock desk:"
QUESTION = "How many months of warranty does the Brook 40 pump have?"
DOCUMENT = """# Warranty

## How long it lasts

The Brook 40 pump has a warranty of 26 months. The warranty starts on the day of delivery.

## What it does not cover

Damage by frost is not covered by the warranty.

# Returns

A customer can return a product within 45 days of delivery. Opened products carry a restocking fee of 12%.
"""


def train_adapter(root: Path) -> None:
    """Train run `mine` with NF4 on chats whose answers all begin alike."""
    pairs = [(f"What is item {n}?", f"{STYLE} Item {n} is on shelf {7 * n % 40}.") for n in range(48)]
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    command = [
        "train/run.py", "model=smollm2_135m", "hardware=cpu", f"data.train={root / 'chats.jsonl'}", "run_id=mine",
        "trainer.epochs=2", "trainer.batch_size=8", "trainer.learning_rate=1e-3", f"paths.data_dir={root}",
    ]  # fmt: skip
    subprocess.run([sys.executable, *command], cwd=REPO, check=True, timeout=300, capture_output=True)


@pytest.fixture(scope="module")
def data(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with models, an adapter, a store, and an adapter that does not fit."""
    root = tmp_path_factory.mktemp("e2e")
    layout = DataDir(root)
    layout.models.symlink_to(demo_models / "models")
    train_adapter(root)
    foreign = write_adapter(layout, "foreign", MODEL) / "manifest.json"
    foreign.write_text(foreign.read_text().replace('"chat_template_sha256": "', '"chat_template_sha256": "0'))
    (root / "documents").mkdir()
    (root / "documents" / "warranty.md").write_text(DOCUMENT)
    command = [
        "retrieval/run.py",
        "action=ingest",
        "store=mine",
        f"source={root / 'documents'}",
        f"paths.data_dir={root}",
    ]
    subprocess.run([sys.executable, *command], cwd=REPO, check=True, timeout=300, capture_output=True)
    return root


@pytest.fixture(scope="module")
def program(data: Path) -> Iterator[Program]:
    """One server for all tests here; the last one stops it."""
    options = (
        "+assistants.helper={model: smollm2-135m-instruct, stores: [mine]}",
        "+assistants.tuned={model: mine, stores: [mine], k: 1}",
    )
    with running_program(data, *options) as running:
        yield running


def ask(program: Program, model: str, content: str = QUESTION, **more: Any) -> Any:
    """Ask one question."""
    return program.client().chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=40, **more
    )


def read_stream(stream: Any) -> tuple[str, dict[str, Any]]:
    """Return a stream's text and what rode on its deltas."""
    text = ""
    extras: dict[str, Any] = {}
    for chunk in stream:
        extras |= chunk.model_extra or {}
        for choice in chunk.choices:
            text += choice.delta.content or ""
            extras |= choice.delta.model_extra or {}
    return text, extras


def test_it_lists_what_it_serves_and_says_what_it_leaves_out(program: Program) -> None:
    names = [model.id for model in program.client().models.list()]
    assert names[0] == MODEL
    assert {"mine", "helper", "tuned", "all-minilm-l6-v2"} <= set(names)
    assert any(name.startswith(f"ft:{MODEL}:local:mine:") for name in names)
    assert "foreign" not in names
    words = read_words(program.data)
    assert "left out" in words
    assert "adapter foreign does not fit" in words
    assert "chat_template_sha256" in words


@pytest.mark.parametrize("model", [MODEL, "mine"])
def test_it_chats_and_streams_the_same(program: Program, model: str) -> None:
    whole = ask(program, model, "What is the capital of France?").choices[0].message.content
    assert whole
    assert read_stream(ask(program, model, "What is the capital of France?", stream=True))[0] == whole


def test_the_trained_adapter_shows_its_style_and_the_base_does_not(program: Program) -> None:
    question = "What is item 50?"
    assert ask(program, "mine", question).choices[0].message.content.startswith(STYLE)
    assert STYLE not in ask(program, MODEL, question).choices[0].message.content


def test_the_base_model_knows_what_it_knows(program: Program) -> None:
    assert "Paris" in ask(program, MODEL, "What is the capital of France?").choices[0].message.content


def test_an_assistant_answers_from_the_documents_and_cites_them(program: Program) -> None:
    answer = ask(program, "helper")
    message = answer.choices[0].message
    assert "26 months" in message.content
    citation = message.annotations[0].url_citation
    assert message.content[citation.start_index : citation.end_index] == "[1]"
    assert citation.title == "warranty.md | Warranty > How long it lasts"
    assert "warranty of 26 months" in httpx.get(citation.url).text
    hit = answer.model_extra["retrieval"]["hits"][0]
    assert DOCUMENT.count(hit["text"]) == 1
    assert hit["text"].startswith("The Brook 40 pump")


@pytest.mark.parametrize("model", ["helper", "tuned"])
def test_an_assistant_streams_what_it_says(program: Program, model: str) -> None:
    whole = ask(program, model)
    text, extras = read_stream(ask(program, model, stream=True))
    assert text == whole.choices[0].message.content
    assert extras["annotations"] == [one.model_dump() for one in whole.choices[0].message.annotations]
    assert extras["retrieval"] == whole.model_extra["retrieval"]


def test_an_assistant_says_when_the_documents_are_silent(program: Program) -> None:
    answer = ask(program, "helper", "Who composed the opera Aida?")
    assert answer.choices[0].message.content == "I could not find this in the documents."
    assert answer.model_extra["retrieval"]["hits"] == []


def test_it_embeds(program: Program) -> None:
    vectors = program.client().embeddings.create(model="all-minilm-l6-v2", input=["a pump", "pumps", "a holiday"])
    one, near, far = (item.embedding for item in vectors.data)
    assert len(one) == 384
    assert sum(a * b for a, b in zip(one, near, strict=True)) > sum(a * b for a, b in zip(one, far, strict=True))


def test_errors_are_the_clients_own_classes(program: Program) -> None:
    client = program.client()
    with pytest.raises(openai.NotFoundError):
        ask(program, "nothing")
    with pytest.raises(openai.BadRequestError, match="top_k"):
        ask(program, MODEL, extra_body={"top_k": 5})
    with pytest.raises(openai.BadRequestError) as too_long:
        ask(program, MODEL, "word " * 6000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a pump", model=MODEL)


def test_only_the_gateway_listens(program: Program) -> None:
    family = [psutil.Process(program.process.pid), *program.family()]
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in family
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    public = {address for address in listening if not address[0].startswith("127.")}
    assert public == set()
    assert ("127.0.0.1", int(program.url.rpartition(":")[2])) in listening


def test_a_second_one_on_the_same_data_is_refused_with_the_first_ones_id(program: Program, data: Path) -> None:
    command = [sys.executable, "serve/run.py", f"paths.data_dir={data}"]
    second = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 5
    assert str(program.process.pid) in second.stderr


def find_engine_core(program: Program) -> psutil.Process:
    """Return vLLM's engine core: the process that does the work behind its server."""
    return next(process for process in program.family() if "EngineCore" in " ".join(process.cmdline()) + process.name())


def ask_again_and_again(program: Program) -> None:
    """Ask until it fails, at most for a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ask(program, MODEL, "Hi")


def ask_until_served(program: Program, model: str) -> Any:
    """Ask as a patient client does: again after each 503, as long as a restart may take."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return ask(program, model)
        except openai.InternalServerError as error:
            if error.status_code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_death_of_the_engine_core_in_a_stream_is_seen_and_mended(program: Program) -> None:
    stream = program.client().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Write a very long story about a pump. Do not stop early."}],
        stream=True,
        max_tokens=2000,
    )
    next(iter(stream))
    find_engine_core(program).kill()
    with pytest.raises(openai.APIError):
        list(stream)
    with pytest.raises(openai.InternalServerError) as away:
        ask_again_and_again(program)
    assert away.value.status_code == 503
    assert int(away.value.response.headers["retry-after"]) >= 1
    time.sleep(1)  # by now its death is known
    assert ask_until_served(program, "mine").choices[0].message.content
    assert "26 months" in ask(program, "helper").choices[0].message.content


def test_ctrl_c_leaves_no_process_and_no_folder_behind(program: Program, data: Path) -> None:
    family = program.family()
    socket = next(part for process in family for part in process.cmdline() if part.endswith("vllm.sock"))
    assert len(family) >= 3
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(120) == 0
    _gone, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert not Path(socket).parent.exists()
    words = read_words(data)
    assert "stopped" in words
    assert "nanobind" not in words
