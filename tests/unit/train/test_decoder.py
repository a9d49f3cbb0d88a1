"""The layers by hand give the loss and the gradients of transformers, PEFT and autograd on the same micro-batch."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from core.layout import DataDir
from scripts.bench_gpu_models import adapt, make_base, pack_weights
from scripts.bench_gpu_steps import Setting
from tests.unit.train.test_flat_batch import pad
from train import attention
from train.decoder import Decoder, find_obstacle
from train.flat_batch import FlatBatch
from train.head import score_trained_tokens
from train.kernels import Widths, choose_kernels
from train.model import keep_dequantized
from train.tokens import IGNORED

VOCABULARY = 97


def make_model(dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    """Return a small Llama with grouped keys and an adapter that does something."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    base: Any = LlamaForCausalLM(config)
    base.set_attn_implementation("eager")  # what hardware=cpu takes where the layers are the model's own
    base.requires_grad_(False)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    model: Any = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **lora), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
    return model


def make_inputs(*, left: bool = False, common: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    head = torch.randint(1, VOCABULARY, (common,), generator=generator).tolist()
    rows = [head + torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in (5, 9, 3, 17)]
    labels = [[IGNORED] * (common + 2) + row[common + 2 :] for row in rows]
    return {
        "input_ids": pad(rows, 0, left=left),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, left=left),
        "labels": pad(labels, IGNORED, left=left),
    }


def compute_plainly(model: Any, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    labels = inputs["labels"]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    loss: torch.Tensor = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
    return loss


def take_gradients(model: Any) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


class CountedDecoder(Decoder):
    """Counts its runs, so that no test takes the model's own forward pass for it."""

    runs = 0

    def run(self, input_ids: torch.Tensor, batch: FlatBatch) -> torch.Tensor:
        """Run and count."""
        self.runs += 1
        return super().run(input_ids, batch)


def run_by_hand(model: Any, inputs: dict[str, torch.Tensor], *, share: bool = True) -> Any:
    """Return what a PEFT model answers with the decoder in place."""
    decoder = CountedDecoder(model.get_base_model())
    score_trained_tokens(model.get_base_model(), decoder, share_prefix=share)
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    assert decoder.runs == 1
    return outputs


def compare(dtype: torch.dtype, *, left: bool, share: bool) -> tuple[float, float]:
    """Return the relative distance of loss and gradients from those in float32: by the plain way and by hand."""
    inputs = make_inputs(left=left)
    exact = make_model()
    reference = compute_plainly(exact, inputs, torch.float32)
    reference.backward()
    expected = take_gradients(exact)
    assert len(expected) == 3 * 7 * 2
    model = make_model(dtype)
    compute_plainly(model, inputs, dtype).backward()
    plain = take_gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        outputs = run_by_hand(model, inputs, share=share)
    torch.testing.assert_close(outputs.loss, reference, rtol=1e-5 if dtype is torch.float32 else 2e-2, atol=1e-5)
    outputs.loss.backward()
    by_hand = take_gradients(model)

    def distance(found: dict[str, torch.Tensor]) -> float:
        assert found.keys() == expected.keys()
        off, size = (
            (sum(float(v.square().sum()) for v in part))
            for part in ([found[n] - expected[n] for n in expected], expected.values())
        )
        return float((off / size) ** 0.5)

    return distance(plain), distance(by_hand)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
def test_loss_and_gradients_are_the_same(left: bool, share: bool) -> None:
    _, by_hand = compare(torch.float32, left=left, share=share)
    assert by_hand < 2e-5


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
def test_bfloat16_is_about_as_far_from_the_truth_as_the_plain_way(share: bool) -> None:
    plain, by_hand = compare(torch.bfloat16, left=False, share=share)
    assert by_hand < 1.3 * plain


def test_long_rows_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 5)
    monkeypatch.setattr(attention, "MAX_KEPT", 0)
    assert compare(torch.float32, left=False, share=True)[1] < 2e-5


def pack(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return padded rows as TRL's collator packs them."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    rows = [
        {name: inputs[name][row, :length].tolist() for name in ("input_ids", "labels")}
        for row, length in enumerate(lengths)
    ]
    pair = [
        {"input_ids": a["input_ids"] + b["input_ids"], "labels": a["labels"] + b["labels"], "seq_lengths": sizes}
        for a, b, sizes in zip(rows[::2], rows[1::2], zip(lengths[::2], lengths[1::2], strict=True), strict=True)
    ]
    return dict(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(pair))


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
def test_packed_documents_do_not_see_each_other(share: bool) -> None:
    inputs, model = make_inputs(), make_model()
    run_by_hand(model, inputs, share=share).loss.backward()
    expected = take_gradients(model)
    outputs = run_by_hand(model, pack(inputs), share=share)
    reference = compute_plainly(model, inputs, torch.float32)
    torch.testing.assert_close(outputs.loss, reference, rtol=1e-5, atol=1e-5)
    outputs.loss.backward()
    for name, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_do_not_see_each_other_in_the_models_own_layers(attention: str) -> None:
    inputs, model = make_inputs(), make_model()
    model.get_base_model().set_attn_implementation(attention)
    score_trained_tokens(model.get_base_model())
    outputs = model(**pack(inputs), use_cache=False, fused_lm_head=True)
    torch.testing.assert_close(outputs.loss, compute_plainly(model, inputs, torch.float32), rtol=1e-5, atol=1e-5)


def test_every_learned_token_keeps_its_place() -> None:
    inputs, model = make_inputs(), make_model()
    labels = inputs["labels"][:, 1:]
    log_p = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].log_softmax(-1)
    outputs = run_by_hand(model, inputs)
    mask = labels != IGNORED
    assert torch.equal(outputs.label_mask, mask)
    expected = log_p.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2).masked_fill(~mask, 0)
    torch.testing.assert_close(outputs.log_probs, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs.is_top1, (log_p.argmax(-1) == labels) & mask)


def test_the_reference_is_the_base_with_the_adapter_switched_off() -> None:
    inputs, model = make_inputs(), make_model()
    with model.disable_adapter(), torch.no_grad():
        expected = compute_plainly(model, inputs, torch.float32)
        found = run_by_hand(model, inputs).loss
    with_adapter = model(**inputs, fused_lm_head=True).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert abs(float(with_adapter.detach() - found)) > 0.01


def test_the_model_itself_stays_as_it_was() -> None:
    inputs, model = make_inputs(), make_model()
    before = model(input_ids=inputs["input_ids"]).logits
    names = list(model.state_dict())
    Decoder(model.get_base_model())
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(input_ids=inputs["input_ids"]).logits, before)


@pytest.mark.parametrize(
    ("lora", "clause"),
    [
        ({"lora_dropout": 0.1}, "dropout"),
        ({"target_modules": ["q_proj"]}, "not every linear layer"),
        ({}, None),
    ],
)
def test_it_says_what_stands_in_the_way(lora: dict[str, Any], clause: str | None) -> None:
    obstacle = find_obstacle(make_model(**lora).get_base_model())
    assert (obstacle is None) if clause is None else clause in str(obstacle)


@pytest.mark.parametrize("name", ["blocks", "sdpa"])
def test_recomputed_layers_give_the_same_gradients(name: str) -> None:
    inputs, model = make_inputs(), make_model()
    compute_plainly(model, inputs, torch.float32).backward()
    expected = take_gradients(model)
    kernels = choose_kernels(name, Widths.of_model(model.get_base_model()), torch.device("cpu"), torch.float32)
    assert kernels.names[0] == name
    score_trained_tokens(model.get_base_model(), Decoder(model.get_base_model(), kernels, is_recomputed=True))
    model(**inputs, use_cache=False, fused_lm_head=True).loss.backward()
    for parameter, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bit_codes_are_multiplied_as_their_exact_values(dtype: torch.dtype) -> None:
    inputs = make_inputs()
    losses, gradients = [], []
    for is_kept in (True, False):
        model = make_packed_model(dtype, is_kept=is_kept)
        base = model.get_base_model()
        assert (find_obstacle(base) is None) is is_kept, "on a CPU the model's own layers multiply codes"
        assert find_obstacle(base, is_card=True) is None
        score_trained_tokens(base, Decoder(base))
        loss = model(**inputs, use_cache=False, fused_lm_head=True).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(take_gradients(model))
    assert torch.equal(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def make_packed_model(dtype: torch.dtype, *, is_kept: bool) -> Any:
    """Return the small model with NF4 codes, or with their exact values."""
    setting = Setting(torch.device("cpu"), is_small=True, data=DataDir(Path("none")), folder=Path("none"))
    base = make_base(setting)
    pack_weights(base, dtype)
    for parameter in base.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if is_kept:
        keep_dequantized(base)
    return adapt(base)


def test_a_card_recomputes_by_hand_and_a_cpu_does_not() -> None:
    base = make_model().get_base_model()
    assert "checkpointing" in str(find_obstacle(base, is_recomputed=True))
    assert find_obstacle(base, is_card=True, is_recomputed=True) is None
