"""Pretrain a small rotary text encoder on text that every machine has.

The text is the docstrings of Python's standard library, which come with every interpreter under the PSF license. A
ModernBERT of a few layers learns to fill in masked bytes. Rotations are its only source of order, so the loss is also
computed with every byte at one place: the difference is what the model learns from rotations.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import ModernBertConfig, ModernBertForMaskedLM, set_seed

from hf_any3d.utils.atomic_files import write_text
from studies.runs import stopwatch

PAD, MASK, FIRST_BYTE = 0, 1, 2
IGNORED = -100
PRETRAINING: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    # As many heads as views, so that each view gets one.
    "num_attention_heads": 6,
    "intermediate_size": 384,
    "rope_theta": 10000.0,
    # ModernBERT's default 0.02 is meant for wider layers and learns slowly here.
    "initializer_range": 0.06,
    "length": 64,
    "batch_size": 16,
    "masked": 0.2,
    "steps": 300,
    "learning_rate": 2e-3,
    "held_out_rows": 512,
    "seed": 0,
}
"""Everything that affects the encoder next to the text and the libraries."""

REPORT = "pretraining.json"
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def library_docstrings(root: Path | None = None) -> list[str]:
    """Collect the docstrings of all modules in a folder, one text per module, in the order of file names.

    Args:
        root: Folder of the sources; the standard library by default.
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
    """Concatenate the bytes of all texts and cut them into rows `(rows, length)` of token numbers."""
    data = np.frombuffer("\n\n".join(texts).encode(), dtype=np.uint8).astype(np.int64) + FIRST_BYTE
    return torch.from_numpy(data[: len(data) // length * length].reshape(-1, length))


def mask_tokens(tokens: torch.Tensor, share: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask a share of the tokens; returns masked tokens and labels, which ignore all other tokens."""
    hidden = torch.rand(tokens.shape, generator=generator) < share
    return tokens.masked_fill(hidden, MASK), tokens.masked_fill(~hidden, IGNORED)


@torch.no_grad()
def masked_loss(model: nn.Module, rows: torch.Tensor, share: float, with_places: bool = True) -> float:
    """Compute the cross-entropy of masked bytes in nats.

    Args:
        model: A masked language model.
        rows: `(rows, length)`.
        share: Share of masked bytes.
        with_places: Whether each byte has its own position; otherwise all bytes of a row have the same one.
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
    """Compute the cross-entropy in nats of a model that predicts each byte by its frequency alone."""
    counts = torch.bincount(train.flatten(), minlength=256 + FIRST_BYTE).float() + 1
    return float(-(counts / counts.sum()).log()[rows].mean())


def new_model(settings: dict[str, Any]) -> ModernBertForMaskedLM:
    """Build the untrained encoder with its head for masked bytes; every layer attends to the complete row."""
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
    """Train on masked bytes of random rows of `(rows, length)`."""
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
    """Pretrain the encoder in `folder`, unless it was already pretrained on the same text with the same settings.

    Args:
        folder: Where the encoder is saved.
        settings: See `PRETRAINING`.

    Returns:
        The report that is stored with it: stamp, losses on held-out text before and after, cost.
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
    with stopwatch() as spent:
        train(model, rows, settings)
    made |= spent
    made["loss_after"] = masked_loss(model, held_out, share)
    made["loss_after_at_one_place"] = masked_loss(model, held_out, share, with_places=False)
    _save(model.model, made, folder)
    return made


def _save(encoder: nn.Module, made: dict[str, Any], folder: Path) -> None:
    """Write encoder and report to a temporary folder and rename it, so that `folder` is never incomplete."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    encoder.save_pretrained(temporary)
    write_text(temporary / REPORT, json.dumps(made, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)
