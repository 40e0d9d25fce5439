"""Measure SpatialLM at the size of its 0.5 B release, with random weights, beside its language model alone.

    python -m studies.speed.spatiallm --dtype float32

One thread. The scan is the surface of a room with furniture. Times are processor seconds; those of the model and of
the stock language model, with as many tokens, are taken in turns. Peaks are of a process that does one of them alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from hf_any3d.atomic_files import write_json
from hf_any3d.modeling.spatiallm import SpatialLMConfig, SpatialLMForConditionalGeneration
from hf_any3d.spatiallm_processing import voxelize_room
from studies.speed._measure import timed, timed_in_turns
from studies.speed.large_scene import rooms

# Tokens of the instruction with the released template, and of an answer of a few lines.
_INSTRUCTION, _ANSWER = 250, 24
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _peak() -> float:
    # Of this program alone: `getrusage` also counts the process that started it.
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) / 1e6


def _prompt(tokens: int, config: SpatialLMConfig) -> torch.Tensor:
    """Ids `(1, tokens + instruction)` with a scan's places at the start."""
    words = torch.randint(100, 10_000, (1, _INSTRUCTION), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((1, tokens), config.point_token_id), words], dim=1)


def _settings(count: int) -> dict[str, Any]:
    return {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False, "pad_token_id": 0}


@torch.no_grad()
def measure(dtype: str, points: int, rounds: int) -> dict[str, Any]:
    """Time encoder, prompt and answer of the model and of its language model alone."""
    scene = rooms(points)
    assert scene.colors is not None
    room = voxelize_room(scene.points.astype(np.float64), scene.colors * 255, SpatialLMConfig().num_bins)
    torch.set_default_dtype(_DTYPES[dtype])
    torch.manual_seed(0)
    model: Any = SpatialLMForConditionalGeneration(SpatialLMConfig()).eval()
    torch.set_default_dtype(torch.float32)
    clouds = {
        "points": torch.from_numpy(room.points)[None].float(),
        "grid_coord": torch.from_numpy(room.grid_coord)[None],
    }
    features = model.get_point_features(**clouds)
    encoder = min(timed(lambda: model.get_point_features(**clouds)).cpu for _ in range(rounds))
    tokens = len(features[0])
    ids = _prompt(tokens, model.config)
    mask = torch.ones_like(ids)
    stock_ids = ids.masked_fill(ids == model.config.point_token_id, 5)

    def own(count: int) -> Any:
        return model.generate(ids, attention_mask=mask, point_features=features, **_settings(count))

    def stock(count: int) -> Any:
        return model.language_model.generate(stock_ids, attention_mask=mask, **_settings(count))

    steps = {
        f"{name} {count}": (lambda run=run, count=count: run(count))
        for name, run in (("own", own), ("stock", stock))
        for count in (1, 1 + _ANSWER)
    }
    found = {name: min(one.cpu for one in spent) for name, spent in timed_in_turns(steps, rounds).items()}
    row: dict[str, Any] = {"dtype": dtype, "voxels": len(room.points), "point_tokens": tokens, "encoder_s": encoder}
    for name in ("own", "stock"):
        row[f"{name}_prompt_s"] = found[f"{name} 1"]
        row[f"{name}_token_s"] = (found[f"{name} {1 + _ANSWER}"] - found[f"{name} 1"]) / _ANSWER
    return row | {"peak_gb": _peak()}


@torch.no_grad()
def stock_peak(dtype: str, tokens: int) -> float:
    """Return the peak of a process with the language model alone."""
    config = SpatialLMConfig()
    torch.set_default_dtype(_DTYPES[dtype])
    model: Any = AutoModelForCausalLM.from_config(config.text_config).eval()
    torch.set_default_dtype(torch.float32)
    ids = _prompt(tokens, config).clamp(max=10_000)
    model.generate(ids, attention_mask=torch.ones_like(ids), **_settings(1 + _ANSWER))
    return _peak()


def main() -> None:
    """Measure one precision and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="float32")
    parser.add_argument("--points", type=int, default=60_000, help="points of the scan")
    parser.add_argument("--rounds", type=int, default=2, help="how often everything is timed; the least counts")
    parser.add_argument("--stock-tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    if arguments.stock_tokens is not None:
        print(json.dumps(stock_peak(arguments.dtype, arguments.stock_tokens)))
        return
    row = measure(arguments.dtype, arguments.points, arguments.rounds)
    words = ["--dtype", arguments.dtype, "--stock-tokens", str(row["point_tokens"])]
    alone = subprocess.run(
        [sys.executable, "-m", "studies.speed.spatiallm", *words], check=True, capture_output=True, text=True
    )
    row["stock_peak_gb"] = json.loads(alone.stdout.splitlines()[-1])
    row["token_ratio"] = row["own_token_s"] / row["stock_token_s"]
    print(json.dumps(row))
    if arguments.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(arguments.output, {"machine": machine, **row})


if __name__ == "__main__":
    main()
