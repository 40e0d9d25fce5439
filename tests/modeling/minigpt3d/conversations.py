"""Prompts of the stored runs as token ids, one per character, as in their toy tokenizer."""

from __future__ import annotations

import torch

POINT_TOKEN, PAD, IGNORED = 130, 128, -100
PLACES = 32


def ids_of(text: str) -> list[int]:
    """Ids of a text with one cloud."""
    before, after = text.split("<PointCloudHere>")
    return [*map(ord, before), *[POINT_TOKEN] * PLACES, *map(ord, after)]


def training_batch(manifest: dict) -> dict[str, torch.Tensor]:
    """Questions and answers of a stored run: padded on the right, labels on the answers."""
    samples = manifest["input"]
    rows = []
    for instruction, answer in zip(samples["instruction_input"], samples["answer"], strict=True):
        prompt = [PAD, *ids_of(samples["prompt_template (training)"].format(instruction))]
        rows.append((prompt, [ord(character) for character in answer + samples["end_sym"]]))
    # Released batches are as long as the longest prompt and the longest answer together.
    length = max(len(prompt) for prompt, _ in rows) + max(len(answer) for _, answer in rows)
    batch = {
        "input_ids": torch.full((len(rows), length), PAD),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), IGNORED),
    }
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        batch["input_ids"][row, :end] = torch.tensor(prompt + answer)
        batch["attention_mask"][row, :end] = 1
        batch["labels"][row, len(prompt) : end] = torch.tensor(answer)
    return batch


def prompt_batch(prompts: list[str]) -> dict[str, torch.Tensor]:
    """Prompts to answer: padded on the left."""
    rows = [ids_of(prompt) for prompt in prompts]
    length = max(map(len, rows))
    padded = [[PAD] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
