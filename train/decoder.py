"""The decoder of a Llama model under LoRA, run through the hand-written layers.

Reads a transformers model with PEFT's adapters and leaves it as it is: names, saving, loading and generation stay
theirs. Only the forward pass of training and evaluation goes this way. On a card it also takes 4-bit weights and
recomputes layers in the backward pass. Does not know the loss.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.attention import Attention
from train.flat_batch import FlatBatch
from train.kernels import CPU_KERNELS, Kernels
from train.layers import (
    AttentionHalf,
    AttentionWeights,
    MlpHalf,
    MlpWeights,
    Norm,
    PackedProjection,
    PlainProjection,
    Projection,
    Rotation,
)

ADAPTER = "default"
"""PEFT's name for the adapter that trains."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its frozen weights, and PEFT's modules that hold the adapters of each half."""

    attention: AttentionWeights
    mlp: MlpWeights
    attention_linears: list[Any]
    mlp_linears: list[Any]


class Decoder:
    """A model's layers, ready to run on flat tokens."""

    def __init__(self, model: Any, kernels: Kernels = CPU_KERNELS, *, is_recomputed: bool = False) -> None:
        """Join the weights of layers that read the same input; each layer's own weight becomes a view of the joint one.

        Args:
            model: A LlamaForCausalLM inside PEFT's LoRA, one that `find_obstacle` has nothing against.
            kernels: What the layers run with.
            is_recomputed: Keep each layer's input only, and run it once more in the backward pass.
        """
        self.model = model.model
        self.kernels, self.is_recomputed = kernels, is_recomputed
        self.layers = [_read_layer(layer, model.config, kernels) for layer in self.model.layers]

    def run(self, input_ids: Tensor, batch: FlatBatch) -> Tensor:
        """Compute the last hidden states of the scored tokens, normed.

        Args:
            input_ids: (B, T).
            batch: Where its tokens go.

        Returns:
            (M, C).
        """
        # The layers choose their dtypes themselves; on a card autocast would compute softmax and norms otherwise.
        with torch.autocast(input_ids.device.type, enabled=False):
            x = self.model.embed_tokens(input_ids.flatten()[batch.take])  # (N, C)
            cos, sin = self.model.rotary_emb(x, batch.positions[None])  # (1, N, D)
            half = cos.shape[-1] // 2
            rotation = Rotation(cos[0, :, None, :half], sin[0, :, None, :half])
            for layer in self.layers:
                x = self._run_layer(layer, x, batch, rotation)
            normed: Tensor = self.model.norm(x)
            return normed

    def _run_layer(self, layer: Layer, x: Tensor, batch: FlatBatch, rotation: Rotation) -> Tensor:
        attention, mlp = _list_adapters(layer.attention_linears), _list_adapters(layer.mlp_linears)

        def run(x: Tensor, *adapters: Tensor) -> Tensor:
            split = len(attention)
            mixed: Tensor = AttentionHalf.apply(x, layer.attention, batch, rotation, *adapters[:split])  # type: ignore[no-untyped-call]
            if layer is self.layers[-1]:
                mixed = mixed[batch.scored]  # nothing reads the others from here on
            changed: Tensor = MlpHalf.apply(mixed, layer.mlp, *adapters[split:])  # type: ignore[no-untyped-call]
            return changed

        if self.is_recomputed and torch.is_grad_enabled():
            # The reentrant kind: what a kernel keeps in a graph of its own is made anew too.
            again: Tensor = checkpoint(run, x, *attention, *mlp, use_reentrant=True, preserve_rng_state=False)
            return again
        return run(x, *attention, *mlp)


def find_obstacle(model: Any, *, is_card: bool = False, is_recomputed: bool = False) -> str | None:
    """Return why a model cannot go through the hand-written layers, as a clause; None where it can.

    Args:
        model: The base model inside the adapter.
        is_card: Whether it runs on a card, where they also take 4-bit weights and recompute; on a CPU the model's own
            layers do that, as measured.
        is_recomputed: Whether activations are to be recomputed.
    """
    from transformers import LlamaForCausalLM

    if not isinstance(model, LlamaForCausalLM):
        return f"they know Llama only, this is {type(model).__name__}"
    config = model.config
    linears = [linear for layer in model.model.layers for linear in _list_linears(layer)]
    has_adapters = all(_can_read(linear, is_card=is_card) for linear in linears)
    obstacles = {
        "they know silu without biases and attention dropout only": config.hidden_act != "silu"
        or config.attention_bias
        or config.mlp_bias
        or config.attention_dropout,
        "gradient checkpointing is on": (is_recomputed or model.is_gradient_checkpointing) and not is_card,
        "not every linear layer has an adapter on plain weights": not has_adapters,
        "lora.dropout is on": has_adapters
        and any(not isinstance(linear.lora_dropout[ADAPTER], nn.Identity) for linear in linears),
    }
    return next((obstacle for obstacle, stands in obstacles.items() if stands), None)


def _can_read(linear: Any, *, is_card: bool) -> bool:
    """Whether a linear layer is PEFT's, with the one adapter, on weights that the layers can multiply."""
    from peft.tuners.lora import Linear

    if list(getattr(linear, "lora_A", {})) != [ADAPTER]:
        return False
    return is_card if _is_packed(linear) else type(linear) is Linear


def _is_packed(linear: Any) -> bool:
    """Whether an adapted linear layer holds 4-bit codes."""
    return hasattr(linear.get_base_layer().weight, "quant_state")


def _list_linears(layer: Any) -> list[Any]:
    block, mlp = layer.self_attn, layer.mlp
    return [block.q_proj, block.k_proj, block.v_proj, block.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _list_adapters(linears: list[Any]) -> list[Tensor]:
    """Return A and B of each layer in turn; nothing while PEFT has the adapters switched off."""
    if linears[0].disable_adapters:
        return []
    return [pair[ADAPTER].weight for linear in linears for pair in (linear.lora_A, linear.lora_B)]


def _read_layer(layer: Any, config: Any, kernels: Kernels) -> Layer:
    linears = _list_linears(layer)
    shape = Attention(config.num_attention_heads, config.num_key_value_heads, layer.self_attn.head_dim)
    before, after = _read_norm(layer.input_layernorm), _read_norm(layer.post_attention_layernorm)
    reads, writes = _join(linears[:3]), _join(linears[3:4])
    return Layer(
        AttentionWeights(before, reads, writes, shape, kernels.attention, kernels.passes),
        MlpWeights(after, _join(linears[4:6]), _join(linears[6:]), kernels.passes),
        linears[:4],
        linears[4:],
    )


def _read_norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.variance_epsilon)


def _join(linears: list[Any]) -> Projection:
    """Put the weights of linear layers below each other; their own become views, so that memory stays the same.

    4-bit codes stay where they are; their values are put below each other whenever they are multiplied.
    """
    bases: list[nn.Linear] = [linear.get_base_layer() for linear in linears]
    sizes = tuple(base.out_features for base in bases)
    scales = tuple(float(linear.scaling[ADAPTER]) for linear in linears)
    if any(_is_packed(linear) for linear in linears):
        return PackedProjection(tuple(bases), sizes, scales)
    if len(bases) == 1:
        return PlainProjection(bases[0].weight, sizes, scales)
    weight = torch.cat([base.weight for base in bases])
    for base, part in zip(bases, weight.split(sizes), strict=True):
        base.weight = nn.Parameter(part, requires_grad=False)
    return PlainProjection(weight, sizes, scales)
