"""A small rotary text encoder, briefly pretrained on text that every machine has, since weights can't be fetched.

The text is the documentation inside Python's own standard library: the docstrings of its modules, which come with
every interpreter under the PSF licence. A ModernBERT of a few layers learns to fill in masked bytes of it. Turning by
places is all that it knows of order, so the loss is also taken with every byte at one place: the difference is what
it reads from its rotations. The encoder is made once and kept.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import platform
import shutil
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import ModernBertConfig, ModernBertForMaskedLM, set_seed

from hf_any3d.atomic_files import write_text

PAD, MASK, FIRST_BYTE = 0, 1, 2
IGNORED = -100
PRETRAINING: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    # As many heads as views, so that heads can be shared out evenly.
    "num_attention_heads": 6,
    "intermediate_size": 384,
    "rope_theta": 10000.0,
    # ModernBERT's own 0.02 is meant for wider layers and learns slowly here.
    "initializer_range": 0.06,
    "length": 64,
    "batch_size": 16,
    "masked": 0.2,
    "steps": 300,
    "learning_rate": 2e-3,
    "held_out_rows": 512,
    "seed": 0,
}
"""Everything that decides the encoder beside the text and the libraries."""

REPORT = "pretraining.json"
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def library_docstrings(root: Path | None = None) -> list[str]:
    """The docstrings of all modules under a folder, one text a module that has any, by name of its file.

    Args:
        root: where the sources are; the standard library by default.
    """
    root, texts = root or Path(sysconfig.get_path("stdlib")), []
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT & set(path.relative_to(root).parts):
            continue
        nodes = ast.walk(ast.parse(path.read_bytes()))
        found = [ast.get_docstring(node) for node in nodes if isinstance(node, _HAS_DOCSTRING)]
        if text := "\n\n".join(filter(None, found)):
            texts.append(text)
    return texts


def byte_rows(texts: list[str], length: int) -> torch.Tensor:
    """The bytes of all texts end to end, `(rows, length)`, as numbers of tokens."""
    data = np.frombuffer("\n\n".join(texts).encode(), dtype=np.uint8).astype(np.int64) + FIRST_BYTE
    return torch.from_numpy(data[: len(data) // length * length].reshape(-1, length))


def mask_tokens(tokens: torch.Tensor, share: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide a share of the tokens; their labels are what stood there, all others are ignored."""
    hidden = torch.rand(tokens.shape, generator=generator) < share
    return tokens.masked_fill(hidden, MASK), tokens.masked_fill(~hidden, IGNORED)


@torch.no_grad()
def masked_loss(model: nn.Module, rows: torch.Tensor, share: float, with_places: bool = True) -> float:
    """Cross-entropy of masked bytes in nats; without places, all bytes of a row stand at the same one.

    Args:
        model: a masked language model.
        rows: `(rows, length)`.
        share: how many are masked.
        with_places: let every byte stand where it does.
    """
    model.eval()
    length = rows.shape[1]
    places = torch.arange(length) if with_places else torch.zeros(length, dtype=torch.long)
    masked, labels = mask_tokens(rows, share, torch.Generator().manual_seed(1))
    total = 0.0
    for part, answer in zip(masked.split(64), labels.split(64), strict=True):
        logits = model(input_ids=part, position_ids=places.expand(len(part), -1)).logits
        total += nn.functional.cross_entropy(
            logits.flatten(0, 1), answer.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
    return total / int((labels != IGNORED).sum())


def frequency_loss(train: torch.Tensor, rows: torch.Tensor) -> float:
    """Cross-entropy in nats of rows for one who knows how frequent each byte is, and nothing of its neighbours."""
    counts = torch.bincount(train.flatten(), minlength=256 + FIRST_BYTE).float() + 1
    return float(-(counts / counts.sum()).log()[rows].mean())


def new_model(settings: dict[str, Any]) -> ModernBertForMaskedLM:
    """The untrained encoder with its head for masked bytes; every layer sees the whole row."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "initializer_range")
    rope = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    config = ModernBertConfig(
        **{name: settings[name] for name in sizes},
        vocab_size=256 + FIRST_BYTE,
        max_position_embeddings=settings["length"],
        layer_types=["full_attention"] * settings["num_hidden_layers"],
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        **dict.fromkeys(("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id", "pad_token_id"), PAD),
    )
    set_seed(settings["seed"])
    return ModernBertForMaskedLM(config)


def train(model: nn.Module, rows: torch.Tensor, settings: dict[str, Any]) -> None:
    """Fill in masked bytes of rows `(rows, length)` drawn at random."""
    model.train()
    steps, generator = settings["steps"], torch.Generator().manual_seed(settings["seed"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], betas=(0.9, 0.98))
    warmup_and_cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps + 1), 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for _ in (bar := tqdm(range(steps), desc="pretraining")):
        chosen = torch.randint(len(rows), (settings["batch_size"],), generator=generator)
        masked, labels = mask_tokens(rows[chosen], settings["masked"], generator)
        loss = model(input_ids=masked, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup_and_cosine.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


def pretrained_encoder(folder: Path, settings: dict[str, Any] = PRETRAINING) -> dict[str, Any]:
    """Make the encoder in `folder`, unless it is there already, made of the same text by the same settings.

    Args:
        folder: where the encoder is kept, as `save_pretrained` writes it.
        settings: see `PRETRAINING`.

    Returns:
        The report beside it: stamp, losses on held-out text before and after, cost.
    """
    texts = library_docstrings()
    stamp = {
        "text": "docstrings of the standard library of Python " + platform.python_version(),
        "sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "settings": settings,
        "libraries": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    report = folder / REPORT
    if report.is_file() and (kept := json.loads(report.read_text(encoding="utf-8")))["stamp"] == stamp:
        return kept
    length, share = settings["length"], settings["masked"]
    rows = byte_rows([text for number, text in enumerate(texts) if number % 20], length)
    held_out = byte_rows(texts[::20], length)[: settings["held_out_rows"]]
    model = new_model(settings)
    made: dict[str, Any] = {"stamp": stamp, "bytes": rows.numel(), "held_out_bytes": held_out.numel()}
    made["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    made["loss_of_frequencies"] = frequency_loss(rows, held_out)
    made["loss_before"] = masked_loss(model, held_out, share)
    start, cpu_start = time.perf_counter(), time.process_time()
    train(model, rows, settings)
    made |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    made["loss_after"] = masked_loss(model, held_out, share)
    made["loss_after_at_one_place"] = masked_loss(model, held_out, share, with_places=False)
    _put(model.model, made, folder)
    return made


def _put(encoder: nn.Module, made: dict[str, Any], folder: Path) -> None:
    """Write encoder and report beside the folder, then rename: a folder is there whole or not at all."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    encoder.save_pretrained(temporary)
    write_text(temporary / REPORT, json.dumps(made, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)
