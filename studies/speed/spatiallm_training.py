"""Measure a training step of SpatialLM at the size of its 0.5 B release, with random weights.

    python -m studies.speed.spatiallm_training --folder outputs/spatiallm-speed

A sample of a thousand point tokens, the instruction and an answer of 400 tokens, batch size 1, AdamW, one thread. Each
way runs in a new process, which opens a stored form of `studies.speed.spatiallm` and takes a step: forward, backward
and optimizer. Its peak contains the program itself; `held_gb` is what weights, gradients and states of the optimizer
take by their sizes, `saved_gb` what autograd saves between forward and backward.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hf_any3d.atomic_files import write_json
from hf_any3d.modeling.pretrained_parts.tensors import inner_tensors
from hf_any3d.training.layouts import LayoutModelArguments, adapted
from studies.speed._measure import saved_bytes, storages, timed
from studies.speed.quantization import resident
from studies.speed.spatiallm import opened, prompt, scan

ANSWER = 400
# A room of about a thousand tokens.
_POINTS, _SIZE = 25_000, 1.3
_STRIDE = 16
WAYS = {
    "LoRA": ("float32", ["--peft", "lora"], False),
    "LoRA, checkpointing": ("float32", ["--peft", "lora"], True),
    "LoRA, bfloat16, checkpointing": ("bfloat16", ["--peft", "lora"], True),
    "LoRA on int8": ("int8", ["--peft", "lora"], False),
    "LoRA on int8, checkpointing": ("int8", ["--peft", "lora"], True),
    "LoRA of both parts, checkpointing": ("float32", ["--peft", "lora", "--adapt", "language,encoder"], True),
    "layers between alone, checkpointing": ("float32", ["--peft", "none"], True),
    "full, checkpointing": ("float32", ["--peft", "full", "--adapt", "language,encoder"], True),
}
"""Name -> form of the frozen weights, what is trained, and whether layers are computed again in the backward pass."""


def _gigabytes(tensors: Any) -> float:
    return sum(part.nbytes for tensor in tensors for part in inner_tensors(tensor) or [tensor]) / 1e9


def measure(folder: Path, way: str, without_step: bool) -> dict[str, Any]:
    """Take a training step in one of `WAYS`, or compute the sizes alone."""
    form, words, checkpointing = WAYS[way]
    settings = dict(zip(words[::2], words[1::2], strict=True))
    adapt = settings.get("--adapt", "language").split(",")
    before = resident("VmRSS") / 1e3
    model: Any = opened(folder, form)
    config = model.config
    trained: nn.Module = adapted(
        model, LayoutModelArguments(model_name_or_path=str(folder), peft=settings["--peft"], adapt=adapt)
    )
    if checkpointing:
        model.activation_checkpointing_enable()
    trained.train()
    learned = [weight for weight in trained.parameters() if weight.requires_grad]
    weights = _gigabytes(trained.parameters()) + _gigabytes(trained.buffers())
    row: dict[str, Any] = {"way": way, "trained": sum(weight.numel() for weight in learned), "weights_gb": weights}
    # A gradient and two states of AdamW for each trained weight.
    row["held_gb"] = weights + 3 * _gigabytes(learned)
    if without_step:
        return row
    clouds = scan(_POINTS, _SIZE)
    tokens = len((clouds["grid_coord"][0] // _STRIDE).unique(dim=0))
    ids = torch.cat([prompt(tokens, config), torch.randint(100, 10_000, (1, ANSWER))], dim=1)
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **clouds}
    optimizer = torch.optim.AdamW(learned, lr=1e-6)
    saved = []

    def step() -> None:
        saved.append(saved_bytes(lambda: trained(**inputs).loss, storages(trained)))
        optimizer.step()

    spent = timed(step)
    missing = [weight for weight in learned if weight.grad is None]
    assert not missing, f"{len(missing)} trained weights have no gradient"
    row |= {"tokens": ids.shape[1], "point_tokens": tokens, "voxels": clouds["points"].shape[1]}
    return row | {
        "saved_gb": saved[0] / 1e9,
        "step_cpu_s": spent.cpu,
        "peak_gb": resident("VmHWM") / 1e3,
        "before_gb": before,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format as Markdown."""
    lines = [
        "| | trained weights | weights, gradients, states, GB | saved for backward, GB | peak, GB | step, CPU s |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        measured = [f"{row[name]:{how}}" if name in row else "not run" for name, how in _COLUMNS.items()]
        lines.append(
            f"| {row['way']} | {row['trained'] / 1e6:.1f} M | {row['held_gb']:.1f} | {' | '.join(measured)} |"
        )
    return "\n".join(lines)


_COLUMNS = {"saved_gb": ".1f", "peak_gb": ".1f", "step_cpu_s": ".0f"}


def main(words: list[str] | None = None) -> None:
    """Measure the ways, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/spatiallm-speed"), help="of the stored forms")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--sizes-alone", nargs="*", choices=WAYS, default=[], help="ways without a step")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if options.one:
        (way,) = options.ways
        print(json.dumps(measure(options.folder, way, way in options.sizes_alone)))
        return
    rows = []
    for way in options.ways:
        program = [sys.executable, "-m", "studies.speed.spatiallm_training", "--folder", str(options.folder)]
        alone = ["--sizes-alone", way] if way in options.sizes_alone else []
        done = subprocess.run(
            [*program, "--one", "--ways", way, *alone], check=True, stdout=subprocess.PIPE, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    if options.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(options.output, {"machine": machine, "ways": rows})


if __name__ == "__main__":
    main()
