"""Measure a training step of SpatialLM at the width of its 0.5 B release, with random weights.

    python -m studies.speed.spatiallm_training

A sample of a thousand point tokens, the instruction and an answer of 400 tokens, batch size 1, AdamW. Memory is
computed for the full size from runs of its width with one and two layers and with few words: sizes of weights,
gradients and states of the optimizer, and what autograd saves between forward and backward in the language model. A
step, forward, backward and optimizer, is taken with a few layers and words (`--layers 24 --words 151936`: with all)
and the full point encoder, in a new process for each way, one thread: its time and peak, and whether every trained
weight gets a gradient.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import BitsAndBytesConfig

from hf_any3d.modeling.spatiallm import SpatialLMConfig, SpatialLMForConditionalGeneration
from hf_any3d.training.layouts import LayoutModelArguments, adapted
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import held_tensors, saved_bytes, storages, timed
from studies.speed.quantization import resident
from studies.speed.spatiallm import prompt, scan

POINT_TOKENS, INSTRUCTION, ANSWER = 1000, 250, 400
# A room of about as many tokens.
_POINTS, _SIZE, _STRIDE = 25_000, 1.3, 16
_WORDS, _TOKENS = 8192, POINT_TOKENS + INSTRUCTION + ANSWER
_SCORED = ANSWER + 1
"""Tokens with scores of all words: those that are learned, and the one before, as `LayoutCollator` has it."""
_ENCODER_GB = 108_756_096 * 4e-9
_SMALL_ENCODER = {
    **{"model_type": "point_transformer_v3", "in_channels": 6, "grid_size": 0.025, "depths": (1, 1)},
    **{"hidden_sizes": (12, 24), "num_attention_heads": (1, 2), "patch_sizes": (16, 16), "pooling_strides": (2,)},
}
"""In place of the point encoder where the language model alone is run."""
BOTH = ("language", "encoder")
WAYS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "LoRA": ({}, False, False),
    "LoRA, checkpointing": ({}, False, True),
    "LoRA on int8": ({}, True, False),
    "LoRA on int8, checkpointing": ({}, True, True),
    "layers between alone, checkpointing": ({"peft": "none"}, False, True),
    "full": ({"peft": "full", "adapt": [*BOTH]}, False, False),
    "full, checkpointing": ({"peft": "full", "adapt": [*BOTH]}, False, True),
}
"""Name -> what is trained, whether the language model is in 8 bits, and whether layers are computed again."""


def _gigabytes(tensors: Any) -> float:
    return sum(part.nbytes for tensor in tensors for part in held_tensors(tensor)) / 1e9


def _trained(model: Any, settings: dict[str, Any], checkpointing: bool) -> nn.Module:
    made = adapted(model, LayoutModelArguments("any", **settings))
    if checkpointing:
        model.activation_checkpointing_enable()
    return made.train()


def _built(folder: Path, layers: int, vocabulary: int, point: dict[str, Any] | None, in_bits: bool) -> Any:
    """Return a model of the full width with a few layers and words, opened from the folder as users do."""
    place = folder / f"{layers}-{vocabulary}-{point is None}"
    if not (place / "config.json").is_file():
        torch.manual_seed(0)
        config: Any = SpatialLMConfig()
        text = config.text_config.to_dict()
        text |= {"num_hidden_layers": layers, "vocab_size": vocabulary, "layer_types": None}
        ids: Any = {"point_start_token_id": 1, "point_end_token_id": 2, "point_token_id": 3}
        encoder: Any = {} if point is None else {"point_config": point}
        own = SpatialLMConfig(text_config=text, **ids, **encoder)
        SpatialLMForConditionalGeneration(own).save_pretrained(place)
    bits = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if in_bits else {}
    return SpatialLMForConditionalGeneration.from_pretrained(place, dtype=torch.float32, **bits)


def _sizes(folder: Path, way: str, layers: int, vocabulary: int) -> dict[str, float]:
    """Return GB of the language model alone in a forward pass of `POINT_TOKENS`, instruction and answer."""
    settings, in_bits, checkpointing = WAYS[way]
    model = _built(folder, layers, vocabulary, _SMALL_ENCODER, in_bits)
    trained = _trained(model, settings, checkpointing)
    embedded = torch.zeros(1, _TOKENS, model.config.text_config.hidden_size, requires_grad=True)
    inputs = {"inputs_embeds": embedded, "labels": torch.zeros(1, _SCORED, dtype=torch.long)}
    inputs |= {"logits_to_keep": _SCORED, "use_cache": False}
    held = saved_bytes(lambda: trained(**inputs).loss, storages(trained))
    language = [(name, weight) for name, weight in trained.named_parameters() if "language_model" in name]
    learned = _gigabytes(weight for _, weight in language if weight.requires_grad)
    return {"weights_gb": _gigabytes(weight for _, weight in language), "learned_gb": learned, "saved_gb": held / 1e9}


def sizes(folder: Path, way: str) -> dict[str, Any]:
    """Compute the memory of a step at the full size, in GB, from those of few layers and words."""
    config: Any = SpatialLMConfig()
    settings = WAYS[way][0]
    layers, vocabulary = config.text_config.num_hidden_layers, config.text_config.vocab_size
    one, deeper, wider = (_sizes(folder, way, *of) for of in ((1, _WORDS), (2, _WORDS), (1, 2 * _WORDS)))
    # All are sums over layers and words.
    full = {
        name: one[name]
        + (layers - 1) * (deeper[name] - one[name])
        + (vocabulary / _WORDS - 1) * (wider[name] - one[name])
        for name in one
    }
    with torch.device("meta"):
        between = nn.ModuleList([nn.Linear(512 + 63, 512), nn.Linear(512, 512), nn.Linear(512, 896)])
    between_gb = _gigabytes(between.parameters())
    learned = full["learned_gb"] + between_gb
    if "encoder" in settings.get("adapt", ()):
        learned += _ENCODER_GB
    row = {"way": way, "tokens": _TOKENS, "trained": learned * 1e9 / 4}
    row |= {"weights_gb": full["weights_gb"] + _ENCODER_GB + between_gb, "gradients_gb": learned}
    return row | {"states_gb": 2 * learned, "saved_gb": full["saved_gb"], "logits_gb": _SCORED * vocabulary * 4e-9}


def step(folder: Path, way: str, layers: int, words: int) -> dict[str, Any]:
    """Take a training step with some layers and words."""
    settings, in_bits, checkpointing = WAYS[way]
    before = resident("VmRSS") / 1e3
    model = _built(folder, layers, words, None, in_bits)
    trained = _trained(model, settings, checkpointing)
    learned = [weight for weight in trained.parameters() if weight.requires_grad]
    clouds = scan(_POINTS, _SIZE)
    tokens = len((clouds["grid_coord"][0] // _STRIDE).unique(dim=0))
    ids = torch.cat([prompt(tokens, model.config) % words, torch.randint(100, words, (1, ANSWER))], dim=1)
    labels = ids[:, -_SCORED:].clone()
    labels[:, 0] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **clouds}
    inputs["logits_to_keep"] = _SCORED
    optimizer = torch.optim.AdamW(learned, lr=1e-6)
    saved = []

    def run() -> None:
        saved.append(saved_bytes(lambda: trained(**inputs).loss, storages(trained)))
        optimizer.step()

    spent = timed(run)
    missing = [weight for weight in learned if weight.grad is None]
    assert not missing, f"{len(missing)} trained weights have no gradient"
    row = {"way": way, "layers": layers, "words": words, "tokens": ids.shape[1], "point_tokens": tokens}
    row |= {"voxels": clouds["points"].shape[1], "saved_gb": saved[0] / 1e9, "step_cpu_s": spent.cpu}
    return row | {"peak_gb": resident("VmHWM") / 1e3, "before_gb": before}


def table(computed: list[dict[str, Any]], steps: list[dict[str, Any]]) -> str:
    """Format as Markdown."""
    lines = ["| | trained | weights | gradients | optimizer | saved for backward | sum, GB | step, CPU s | peak, GB |"]
    lines.append("|---" * 9 + "|")
    of_way = {row["way"]: row for row in steps}
    for row in computed:
        parts = [row[name] for name in ("weights_gb", "gradients_gb", "states_gb", "saved_gb")]
        # Beside what is saved, the gradient of the scores is as large as they are.
        total = sum(parts) + row["logits_gb"]
        own = of_way.get(row["way"])
        measured = [f"{own['step_cpu_s']:.0f}", f"{own['peak_gb']:.1f}"] if own else ["", ""]
        cells = [f"{row['trained'] / 1e6:.1f} M", *(f"{part:.2f}" for part in parts), f"{total:.1f}", *measured]
        lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Compute sizes, take the steps and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), help="ways to take a step in")
    parser.add_argument("--layers", type=int, default=4, help="layers of the language model in the steps")
    parser.add_argument("--words", type=int, default=_WORDS, help="words of the language model in the steps")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(step(Path(options.one), options.ways[0], options.layers, options.words)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        computed = [sizes(Path(folder), way) for way in WAYS]
        for way in options.ways:
            program = [sys.executable, "-m", "studies.speed.spatiallm_training", "--one", folder, "--ways", way]
            program += ["--layers", str(options.layers), "--words", str(options.words)]
            done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(computed, rows))
    if options.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(options.output, {"machine": machine, "computed": computed, "steps": rows})


if __name__ == "__main__":
    main()
