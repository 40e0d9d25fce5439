"""The tokenizer of a language model's directory, and what it says of special tokens."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def open_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Open a tokenizer.

    Args:
        name: Directory or hub name.

    Raises:
        ValueError: There is none, or it has no end token.
    """
    # Of such a directory transformers makes a tokenizer without any words.
    if os.path.isdir(name) and not any((Path(name) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{name}: no tokenizer; expected tokenizer.json or vocab.json, or give --tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: no tokenizer that can be opened ({reason}); give --tokenizer") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name}: the tokenizer has no end token, which answers and padding need")
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the files of a tokenizer; returns the names of those that there are."""
    found = [name for name in FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def take_token_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Give a language model's config the start and end token of its tokenizer, and return what generation needs.

    Configs of transformers' first Phi have ids 1 and 2 there, which are ordinary words of Phi-2's tokenizer.
    """
    end = tokenizer.eos_token_id
    config.bos_token_id = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    config.eos_token_id = end
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {"bos_token_id": config.bos_token_id, "eos_token_id": end, "pad_token_id": pad}
