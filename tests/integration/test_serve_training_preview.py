"""Lengths and sample of training data with a real model's tokenizer and template."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from serve.training_preview import preview_file

ROW = {"messages": [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "45 days, we think."}]}


def test_a_row_is_shown_and_counted_as_the_model_reads_it(demo_models: Path, tmp_path: Path) -> None:
    folder = demo_models / "models" / "smollm2-135m-instruct"
    (tmp_path / "a").write_text(json.dumps(ROW) + "\n")
    found = preview_file(tmp_path / "a", "a.jsonl", folder)
    rendered = found["sample"]["rendered"]
    assert "<|im_start|>user\nHow long?<|im_end|>" in rendered
    assert rendered.rstrip().endswith("45 days, we think.<|im_end|>")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(rendered, add_special_tokens=False).ids
    assert found["lengths"]["unit"] == "tokens"
    assert found["lengths"]["total"] == len(ids)
