"""The decoder of a Llama model under LoRA, run through the hand-written layers.

Reads a transformers model with PEFT's adapters and leaves it as it is: names, saving, loading and generation stay
theirs. Only the forward pass of training and evaluation goes this way. Does not know the loss.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.attention import Attention
from train.flat_batch import FlatBatch
from train.layers import AttentionHalf, AttentionWeights, MlpHalf, MlpWeights, Norm, Projection, Rotation

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

    def __init__(self, model: Any) -> None:
        """Join the weights of layers that read the same input; each layer's own weight becomes a view of the joint one.

        Args:
            model: A LlamaForCausalLM inside PEFT's LoRA, one that `find_obstacle` has nothing against.
        """
        self.model = model.model
        self.layers = [_read_layer(layer, model.config) for layer in self.model.layers]

    def run(self, input_ids: Tensor, batch: FlatBatch) -> Tensor:
        """Compute the last hidden states of the scored tokens, normed.

        Args:
            input_ids: (B, T).
            batch: Where its tokens go.

        Returns:
            (M, C).
        """
        x = self.model.embed_tokens(input_ids.flatten()[batch.take])  # (N, C)
        cos, sin = self.model.rotary_emb(x, batch.positions[None])  # (1, N, D)
        half = cos.shape[-1] // 2
        rotation = Rotation(cos[0, :, None, :half], sin[0, :, None, :half])
        attention: Any = AttentionHalf.apply
        mlp: Any = MlpHalf.apply
        for layer in self.layers:
            x = attention(x, layer.attention, batch, rotation, *_list_adapters(layer.attention_linears))
            if layer is self.layers[-1]:
                x = x[batch.scored]  # nothing reads the others from here on
            x = mlp(x, layer.mlp, *_list_adapters(layer.mlp_linears))
        normed: Tensor = self.model.norm(x)
        return normed


def find_obstacle(model: Any) -> str | None:
    """Return why a model cannot go through the hand-written layers, as a clause; None where it can.

    Args:
        model: The base model inside the adapter.
    """
    from peft.tuners.lora import Linear
    from transformers import LlamaForCausalLM

    if not isinstance(model, LlamaForCausalLM):
        return f"they know Llama only, this is {type(model).__name__}"
    config = model.config
    linears = [linear for layer in model.model.layers for linear in _list_linears(layer)]
    has_adapters = all(type(linear) is Linear and list(linear.lora_A) == [ADAPTER] for linear in linears)
    obstacles = {
        "they know silu without biases and attention dropout only": config.hidden_act != "silu"
        or config.attention_bias
        or config.mlp_bias
        or config.attention_dropout,
        "gradient checkpointing is on": model.is_gradient_checkpointing,
        "not every linear layer has an adapter on plain weights": not has_adapters,
        "lora.dropout is on": has_adapters
        and any(not isinstance(linear.lora_dropout[ADAPTER], nn.Identity) for linear in linears),
    }
    return next((obstacle for obstacle, stands in obstacles.items() if stands), None)


def _list_linears(layer: Any) -> list[Any]:
    block, mlp = layer.self_attn, layer.mlp
    return [block.q_proj, block.k_proj, block.v_proj, block.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _list_adapters(linears: list[Any]) -> list[Tensor]:
    """Return A and B of each layer in turn; nothing while PEFT has the adapters switched off."""
    if linears[0].disable_adapters:
        return []
    return [pair[ADAPTER].weight for linear in linears for pair in (linear.lora_A, linear.lora_B)]


def _read_layer(layer: Any, config: Any) -> Layer:
    linears = _list_linears(layer)
    shape = Attention(config.num_attention_heads, config.num_key_value_heads, layer.self_attn.head_dim)
    return Layer(
        AttentionWeights(_read_norm(layer.input_layernorm), _join(linears[:3]), _join(linears[3:4]), shape),
        MlpWeights(_read_norm(layer.post_attention_layernorm), _join(linears[4:6]), _join(linears[6:])),
        linears[:4],
        linears[4:],
    )


def _read_norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.variance_epsilon)


def _join(linears: list[Any]) -> Projection:
    """Put the weights of linear layers below each other; their own become views, so that memory stays the same."""
    bases: list[nn.Linear] = [linear.get_base_layer() for linear in linears]
    sizes = tuple(base.out_features for base in bases)
    scales = tuple(float(linear.scaling[ADAPTER]) for linear in linears)
    if len(bases) == 1:
        return Projection(bases[0].weight, sizes, scales)
    weight = torch.cat([base.weight for base in bases])
    for base, part in zip(bases, weight.split(sizes), strict=True):
        base.weight = nn.Parameter(part, requires_grad=False)
    return Projection(weight, sizes, scales)
