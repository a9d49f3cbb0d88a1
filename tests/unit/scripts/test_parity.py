"""scripts/parity.py: what counts as alike, which canary is chosen, and that PEFT's answers are the model's own."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.errors import ConfigError, ContractError
from scripts.parity import (
    Answer,
    ParityConfig,
    answer_by_peft,
    check_parity,
    choose_canary,
    compare,
    count_common,
    find_stop_tokens,
)


def answer(tokens: list[int], logprobs: list[float] | None = None, lead: float = 1.0) -> Answer:
    """Return an answer whose second most likely token is always 99, `lead` behind."""
    values = logprobs or [-0.1] * len(tokens)
    tops = [{token: value, 99: value - lead} for token, value in zip(tokens, values, strict=True)]
    return Answer(tokens, values, tops)


class Words:
    """A tokenizer for which a token is its number."""

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


@pytest.mark.parametrize(
    ("left", "right", "common"), [([1, 2, 3], [1, 2, 3], 3), ([1, 2], [1, 5], 1), ([1], [1, 2], 1), ([], [1], 0)]
)
def test_answers_are_alike_up_to_their_first_difference(left: list[int], right: list[int], common: int) -> None:
    assert count_common(left, right) == common


def test_the_figures_count_what_has_the_same_context() -> None:
    ours = [answer([1, 2, 3], [-0.1, -0.2, -0.3]), answer([4, 5, 6], [-0.1, -0.2, -0.3], lead=0.25)]
    served = [Answer([1, 2, 3], [-0.1, -0.2, -0.5], []), Answer([4, 99, 6], [-0.2, -9.0, -9.0], [])]
    found = compare(ours, served, "float32", {"vllm": "1"})
    assert (found.prompts, found.equal_prompts, found.tokens) == (2, 0.5, 6)
    assert found.equal_tokens == round(4 / 6, 4)
    assert found.max_difference == pytest.approx(0.2)
    assert found.mean_difference == pytest.approx((0.2 + 0.1) / 4)
    assert found.largest_gap == pytest.approx(0.25)  # at [4, 5], whatever came after


def test_answers_that_never_part_have_no_gap() -> None:
    found = compare([answer([1, 2])], [Answer([1, 2], [-0.1, -0.1], [])], "float32", {})
    assert (found.equal_prompts, found.equal_tokens, found.largest_gap) == (1.0, 1.0, None)
    check_parity(found, 0.01)


@pytest.mark.parametrize(("difference", "lead"), [(0.5, 0.001), (0.0, 0.5)])
def test_more_than_rounding_is_refused(difference: float, lead: float) -> None:
    ours = [answer([1, 2], lead=lead)]
    found = compare(ours, [Answer([1, 99], [-0.1 - difference, -1.0], [])], "bfloat16", {})
    with pytest.raises(ContractError, match="bfloat16"):
        check_parity(found, 0.1)


def test_the_canary_is_the_clearest_difference_that_both_sides_agree_on() -> None:
    prompts = [[1], [2], [3], [4]]
    ours = [answer([5, 6], lead=3.0), answer([5, 6], lead=2.0), answer([5, 6], lead=9.0), answer([5, 6], lead=8.0)]
    served = [answer([5, 6]), answer([5, 6]), answer([5, 6]), answer([5, 7])]
    base = [answer([8, 6]), answer([5, 8]), answer([5, 6]), answer([8, 8])]
    canary = choose_canary(prompts, ours, served, base, Words())
    assert canary is not None
    assert (canary.prompt_ids, canary.tokens, canary.base_tokens) == ([1], [5, 6], [8, 6])
    assert (canary.text, canary.base_text, canary.margin) == ("5 6", "8 6", 3.0)
    assert choose_canary(prompts[2:], ours[2:], served[2:], base[2:], Words()) is None


def test_pefts_answer_is_what_the_model_generates_and_ends_at_a_stop_token() -> None:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config).eval()
    prompt = [3, 9, 4, 11]
    found = answer_by_peft(model, prompt, 8, set())
    ids = torch.tensor([prompt])
    expected = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)[0, 4:].tolist()
    assert found.tokens == expected
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + expected])).logits[0, 3:-1]
    exact = torch.log_softmax(logits, 1).gather(1, torch.tensor(expected)[:, None]).squeeze(1).tolist()
    assert found.logprobs == pytest.approx(exact, abs=1e-4)
    assert found.read_margin(0) == pytest.approx(float(torch.log_softmax(logits, 1)[0].topk(2).values.diff().abs()))
    place = expected.index(expected[2])
    assert answer_by_peft(model, prompt, 8, {expected[2]}).tokens == expected[: place + 1]
    model.generation_config.eos_token_id = [7, 8]
    assert find_stop_tokens(model, type("T", (), {"eos_token_id": 2})()) == {2, 7, 8}


def test_values_out_of_range_are_refused() -> None:
    for change in ({"rows": 0}, {"max_tokens": 0}, {"tolerance": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            ParityConfig(run="a", **change)
