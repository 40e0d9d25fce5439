"""Measure time and memory of a training step of stage 2; `chat.py` runs this in a new process for each setting."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import numpy as np
import torch

from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration, set_stage
from studies.speed._chat_model import PRESETS, QUESTION, build_model, random_clouds
from studies.speed._measure import saved_bytes, storages

TOKENS = 160
"""Tokens of a sample: the cloud, a question, an answer of about a hundred."""


def build_for_training(preset: str, checkpointing: bool) -> MiniGPT3DForConditionalGeneration:
    """Build a model that trains stage 2."""
    model = build_model(preset)
    set_stage(model, 2)
    if checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def batch_for(model: MiniGPT3DForConditionalGeneration, batch: int, points: int) -> dict[str, torch.Tensor]:
    """Build samples with one cloud each, and labels for all tokens after the question."""
    config, begin = model.config, 1 + len(QUESTION) + model.config.num_query_tokens
    ids = torch.randint(config.point_token_id, (batch, TOKENS))  # (batch, tokens)
    ids[:, 1 : 1 + config.num_query_tokens] = config.point_token_id
    labels = ids.clone()
    labels[:, :begin] = -100
    return {"input_ids": ids, "labels": labels, "points": torch.from_numpy(np.stack(random_clouds(batch, points)))}


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkpointing", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model = build_for_training(chosen.preset, chosen.checkpointing)
    inputs = batch_for(model, chosen.batch, 64 if chosen.preset == "tiny" else 8192)
    for _ in range(2):  # the first allocates memory from the system
        model.zero_grad()
        begin = time.process_time()
        model(**inputs).loss.backward()
        spent = time.process_time() - begin
    peak = peak_bytes()
    model.zero_grad()
    result = {
        "checkpointing": chosen.checkpointing,
        "saved_MB": saved_bytes(lambda: model(**inputs).loss, storages(model)) / 1e6,
        "peak_MB": peak / 1e6,
        "weights_MB": sum(parameter.nbytes for parameter in model.parameters()) / 1e6,
        "cpu_s": spent,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
