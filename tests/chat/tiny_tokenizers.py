"""Tiny tokenizers: one of characters, one of bytes with merges."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS = "<|endoftext|>"


def character_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the stored runs: the id of a character is its ASCII number; start, end and padding are 128."""
    vocabulary = {chr(number): number for number in range(128)} | {BOS: 128}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=chr(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS)


def byte_tokenizer(*merges: str) -> PreTrainedTokenizerFast:
    """Bytes, and pairs of characters that merge; without padding token, like Phi-2's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(first, second) for first, second in merges]
    vocabulary = {token: number for number, token in enumerate([*letters, *map("".join, pairs)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS)
