"""The grouped LoRA arithmetic against the formula and against vLLM's own, in a process of its own that imports vLLM."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.fakes.engine import REPO

PROGRAM = """
import json, sys, torch
from serve.cpu_worker import GroupedLora, add_grouped_lora, find_segments
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

torch.manual_seed(5)
slots, rank, width, outs = 3, 4, 8, (6, 10)
lora_a = tuple(torch.randn(slots, 1, rank, width) for _ in outs)
lora_b = tuple(torch.randn(slots, 1, out, rank) for out in outs)
results = {}
cases = {
    "mixed": [1, 1, 0, 2, 2, 2, 1], "none": [0, 0, 0], "one": [3], "ends": [0, 2, 0],
    "long": [1] * 20 + [2] * 9 + [3], "last slot unused": [2, 1, 0, 2, 1],
}
for name, tokens in cases.items():
    x, base = torch.randn(len(tokens), width), torch.randn(len(tokens), sum(outs))
    wrappers = [kind(64, 8, "cpu") for kind in (GroupedLora, PunicaWrapperCPU)]
    ours, theirs = base.clone(), base.clone()
    for wrapper, y in zip(wrappers, (ours, theirs)):
        mapping = LoRAMapping(tuple(tokens), tuple(tokens), is_prefill=True)
        wrapper.update_metadata(mapping, [1, 2, 3], slots, 100)
        wrapper.add_lora_linear(y, x, lora_a, lora_b, 1.0, outs)
    expected = base.clone()
    for row, adapter in enumerate(tokens):
        if adapter:
            delta = [x[row] @ a[adapter - 1, 0].T @ b[adapter - 1, 0].T for a, b in zip(lora_a, lora_b)]
            expected[row] += torch.cat(delta)
    bare = [row for row, adapter in enumerate(tokens) if not adapter]
    with_adapter = [row for row, adapter in enumerate(tokens) if adapter]
    results[name] = {
        "formula": float((ours - expected).abs().max()),
        "vllm": float((ours - theirs)[with_adapter].abs().max()) if with_adapter else 0.0,
        "bare_changed_by_vllm": float((theirs - base)[bare].abs().max()) if bare else 0.0,
        "bare_changed": float((ours - base)[bare].abs().max()) if bare else 0.0,
        "segments": find_segments(wrappers[0].token_lora_indices),
        "is_mixed": wrappers[0]._owners is not None,
    }
half = torch.zeros(2, 6, dtype=torch.bfloat16)
add_grouped_lora(half, torch.ones(2, 8), (lora_a[0].bfloat16(),), (lora_b[0].bfloat16(),), 0.5, (6,), [(0, 1, 2)])
exact = 0.5 * torch.ones(8) @ lora_a[0][0, 0].T @ lora_b[0][0, 0].T
error = float((half[1].float() - exact).abs().max() / exact.abs().max())
results["half"] = {"error": error, "other_row": float(half[0].abs().max())}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Run the program once; vLLM's import sets process-wide things that no other test should see."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPO, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["mixed", "none", "one", "ends", "long", "last slot unused"])
def test_it_is_the_formula_and_what_vllm_computes(results: dict[str, Any], name: str) -> None:
    assert results[name]["formula"] < 1e-4
    assert results[name]["vllm"] < 1e-4


def test_a_token_without_an_adapter_is_left_alone(results: dict[str, Any]) -> None:
    assert results["mixed"]["bare_changed"] == results["none"]["bare_changed"] == 0
    assert results["none"]["segments"] == []


def test_runs_of_one_adapter_are_one_segment(results: dict[str, Any]) -> None:
    assert results["mixed"]["segments"] == [[0, 0, 2], [1, 3, 6], [0, 6, 7]]
    assert results["ends"]["segments"] == [[1, 1, 2]]


def test_many_short_runs_are_computed_at_once(results: dict[str, Any]) -> None:
    mixed = ["mixed", "last slot unused"]
    assert [name for name in results if results[name].get("is_mixed")] == mixed


def test_half_precision_scale_and_rows(results: dict[str, Any]) -> None:
    assert results["half"]["error"] < 0.03
    assert results["half"]["other_row"] == 0


def test_the_reason_for_our_own_still_stands(results: dict[str, Any]) -> None:
    """When this fails, vLLM has mended its arithmetic: read docs/decisions/0021-cpu-lora.md again."""
    assert results["mixed"]["bare_changed_by_vllm"] > 1
