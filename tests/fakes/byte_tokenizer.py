"""A real Hugging Face tokenizer in the small: one token a byte, plus the special tokens of ChatML and Llama 3.

Lets the masks be proven on any text in a moment; the models' own tokenizers are tested in tests/integration.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 256 bytes and the special tokens, without a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    return fast


def read_smollm2_template() -> str:
    """Return the original chat template of SmolLM2, as its model folder has it."""
    return (Path(__file__).parent / "smollm2_original.jinja").read_text(encoding="utf-8")
