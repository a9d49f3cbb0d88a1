"""Random models as folders of a data directory, for the steps of scripts/bench_gpu.py that start a server.

A Llama with a tokenizer of its size, adapters for it, and an embedder of MiniLM-L6's shape: whole, with manifests, as
scripts/models.py leaves them, so that nothing has to be fetched. They answer, though nothing of sense.
"""

from pathlib import Path
from typing import Any

import torch

from core.layout import DataDir
from core.manifest import ModelKind, ModelManifest, hash_files
from scripts.bench_gpu_models import MINILM, SMALL_BERT, make_base, write_adapters
from scripts.bench_gpu_steps import Setting, free_memory

LLAMA, EMBEDDER = "random-llama", "random-minilm"
EMBEDDED_TOKENS = 256
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<assistant> "


def write_llama(setting: Setting, data: DataDir, adapters: int = 0) -> tuple[Path, list[Path]]:
    """Write the Llama of the setting's size, and adapters of rank RANK for it.

    Args:
        setting: Where and at which size.
        data: Gets the model; the adapters lie beside it.
        adapters: How many.

    Returns:
        The model's folder, and the adapters'.
    """
    base = make_base(setting)
    folder = data.model(LLAMA)
    base.save_pretrained(folder)
    make_chat_tokenizer(base.config.vocab_size).save_pretrained(folder)
    _write_manifest(folder, ModelKind.LLM)
    written = write_adapters(base, data.root, adapters, spread=0.02) if adapters else []
    del base
    free_memory(setting.device)
    return folder, written


def write_embedder(setting: Setting, data: DataDir) -> Path:
    """Write an embedder in sentence-transformers' layout, mean pooling and unit vectors; return its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape: dict[str, Any] = setting.pick(MINILM, SMALL_BERT)
    folder, bare = data.model(EMBEDDER), data.root / f"{EMBEDDER}-bare"
    BertModel(BertConfig(**shape)).save_pretrained(bare)
    tokenizer = make_chat_tokenizer(shape["vocab_size"])
    tokenizer.model_max_length = EMBEDDED_TOKENS
    tokenizer.save_pretrained(bare)
    encoder = Transformer(str(bare))
    modules = [encoder, Pooling(encoder.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    _write_manifest(folder, ModelKind.EMBEDDER)
    return folder


def _write_manifest(folder: Path, kind: ModelKind) -> None:
    ModelManifest(folder.name, kind, "random weights", None, "none", hash_files(folder)).write(folder)


def make_chat_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer of so many words, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<end>": 1, "word": 2, "question": 3}
    words |= {f"w{number}": number for number in range(len(words), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<end>", "unk_token": "<unk>", "pad_token": "<end>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = TEMPLATE
    return fast
