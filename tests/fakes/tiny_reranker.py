"""Tiny BERT encoders and cross-encoders with random weights, made on the spot: they score, though not well."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make_tokenizer(words: str, max_tokens: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer that knows some words and every single letter and digit."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?"
    tokens = dict.fromkeys([*SPECIAL, *words.lower().split(), *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=max_tokens,
    )  # fmt: skip


def make_config(tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> BertConfig:
    """Return the shape of the tiny models."""
    return BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=max_tokens, initializer_range=0.2,
    )  # fmt: skip


def write_tiny_reranker(folder: Path, words: str, labels: int = 1, max_tokens: int = 64) -> None:
    """Write a cross-encoder as the hub has them: config.json, model.safetensors, tokenizer."""
    tokenizer = make_tokenizer(words, max_tokens)
    torch.manual_seed(0)
    config = make_config(tokenizer, max_tokens)
    config.num_labels = labels
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tiny_encoder(folder: Path, words: str, max_tokens: int = 64) -> None:
    """Write an embedder in sentence-transformers' layout: encoder, mean pooling, normalisation."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tokenizer = make_tokenizer(words, max_tokens)
    torch.manual_seed(0)
    bare = folder.with_name(f"{folder.name}-bare")
    BertModel(make_config(tokenizer, max_tokens)).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    encoder = Transformer(str(bare))
    modules = [encoder, Pooling(encoder.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
