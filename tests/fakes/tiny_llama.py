"""A Llama 3.2 in the small: the real tokenizer and chat template, a model of two layers with random weights.

The tokenizer comes from the llama-models package (tests only), the template from TRL, which carries the original.
"""

import importlib.util
from pathlib import Path
from typing import Any

import trl

from tests.fakes.byte_tokenizer import make_byte_tokenizer

HIDDEN = 64
"""NF4 works on blocks of 64 weights."""


def read_llama_template() -> str:
    """Return the original chat template of Llama 3.2."""
    return (Path(trl.__file__).parent / "chat_templates" / "llama3_2.jinja").read_text(encoding="utf-8")


def find_tokenizer_model() -> Path:
    """Return the real Llama 3 tokenizer.model, without importing the package that carries it."""
    spec = importlib.util.find_spec("llama_models")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


def list_special_tokens() -> list[str]:
    """Return Llama 3's special tokens in the order of their ids, from 128,000.

    Source: llama_models/llama3/tokenizer.py.
    """
    named = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",
    ]
    return named + [f"<|reserved_special_token_{2 + index}|>" for index in range(256 - len(named))]


def write_llama_tokenizer(folder: Path) -> None:
    """Write the real Llama 3 tokenizer and the template of Llama 3.2 as a Hugging Face folder."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(str(find_tokenizer_model()), extra_special_tokens=list_special_tokens())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = read_llama_template()
    tokenizer.save_pretrained(folder)


def write_byte_llama(folder: Path) -> None:
    """Write a model folder that trains at dozens of steps a second: a token a byte, the real template of Llama 3.2."""
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = read_llama_template()
    tokenizer.save_pretrained(folder)
    write_random_llama(folder, vocab_size=320, bos_token_id=None, eos_token_id=None)


def write_tiny_llama(folder: Path, seed: int = 0) -> None:
    """Write a whole model folder: random weights in bfloat16 safetensors, real tokenizer, real template."""
    write_llama_tokenizer(folder)
    write_random_llama(folder, seed, vocab_size=128_256, bos_token_id=128_000, eos_token_id=128_009)


def write_random_llama(folder: Path, seed: int = 0, **options: Any) -> None:
    """Write configuration and random weights of two small layers, in bfloat16 safetensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 500_000.0, "rope_type": "default"},
        **options,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
