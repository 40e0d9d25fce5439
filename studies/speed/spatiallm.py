"""Measure SpatialLM at the size of its 0.5 B release, with random weights, beside its language model alone.

    python -m studies.speed.spatiallm --folder outputs/spatiallm-speed

Forms are float32, bfloat16 (the point encoder stays in float32) and int8: the language model in 8 bits of
bitsandbytes, the rest in float32. The models are built once and stored in each form in the folder. One thread; the
scan is the surface of a room with furniture. Times are processor seconds; those of the model and of the stock language
model, with as many tokens, are taken in turns. Peaks are of a process that opens a stored form, encodes the scan and
reads the prompt.
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
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_any3d.data.frames.room_voxels import voxelize_room
from hf_any3d.modeling.spatiallm import SpatialLMConfig, SpatialLMForConditionalGeneration
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import timed, timed_in_turns
from studies.speed.large_scene import rooms
from studies.speed.quantization import resident

# Tokens of the instruction with the released template, and of an answer of a few lines.
_INSTRUCTION, _ANSWER = 250, 16
# Of the short prompt: places of a scan, and words.
_PLACES, _WORDS = 64, 32
FORMS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.float32, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
}
"""Arguments of `from_pretrained`."""


def stored_form(folder: Path, form: str, alone: bool = False) -> Path:
    """Store a model with random weights in one of `FORMS`, or its language model alone, unless it is there."""
    place = folder / (f"{form}-alone" if alone else form)
    if (place / "config.json").is_file():
        return place
    if form != "float32":
        kind: Any = AutoModelForCausalLM if alone else SpatialLMForConditionalGeneration
        model: Any = kind.from_pretrained(stored_form(folder, "float32", alone), **FORMS[form])
    elif alone:
        whole = SpatialLMForConditionalGeneration.from_pretrained(stored_form(folder, "float32"))
        model = whole.language_model
    else:
        torch.manual_seed(0)
        model = SpatialLMForConditionalGeneration(SpatialLMConfig())
    model.save_pretrained(place)
    return place


def opened(folder: Path, form: str, alone: bool = False) -> Any:
    """Open a stored form; that in 8 bits has its settings with it."""
    kind: Any = AutoModelForCausalLM if alone else SpatialLMForConditionalGeneration
    dtype = FORMS[form]["dtype"]
    return kind.from_pretrained(stored_form(folder, form, alone), dtype=dtype, local_files_only=True).eval()


def scan(points: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    """Return the voxels of a room with furniture; `size` is a factor of its extent."""
    scene = rooms(points)
    assert scene.colors is not None
    room = voxelize_room(scene.points.astype(np.float64) * size, scene.colors * 255, SpatialLMConfig().num_bins)
    return {
        "points": torch.from_numpy(room.points)[None].float(),
        "grid_coord": torch.from_numpy(room.grid_coord)[None],
    }


def prompt(tokens: int, config: SpatialLMConfig) -> torch.Tensor:
    """Return ids `(1, tokens + instruction)` with a scan's places at the start."""
    words = torch.randint(100, 10_000, (1, _INSTRUCTION), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((1, tokens), config.point_token_id), words], dim=1)


def _settings(count: int) -> dict[str, Any]:
    return {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False, "pad_token_id": 0}


@torch.no_grad()
def measure(folder: Path, form: str, points: int, rounds: int) -> dict[str, Any]:
    """Time encoder, prompt and answer of the model and of its language model alone, in one of `FORMS`."""
    before = resident("VmRSS") / 1e3
    model = opened(folder, form)
    clouds = scan(points)
    features: Any = None

    def encode() -> None:
        nonlocal features
        features = model.get_point_features(**clouds)

    encoder = min(timed(encode).cpu for _ in range(rounds))
    tokens = len(features[0])
    ids, place = prompt(tokens, model.config), model.config.point_token_id
    settings = {"attention_mask": torch.ones_like(ids), "logits_to_keep": 1}
    voxels = clouds["points"].shape[1]
    row: dict[str, Any] = {"form": form, "voxels": voxels, "point_tokens": tokens, "encoder_s": encoder}
    model.generate(ids[:, -8:], **_settings(2))  # weights are read from the disk when they are used first
    spent = [timed(lambda: model(ids, point_features=features, **settings)).cpu for _ in range(rounds)]
    row |= {"own_prompt_s": min(spent), "own_peak_gb": resident("VmHWM") / 1e3, "before_gb": before}
    stock_ids = ids.masked_fill(ids == place, 5)
    spent = [timed(lambda: model.language_model(stock_ids, **settings)).cpu for _ in range(rounds)]
    row["stock_prompt_s"] = min(spent)
    # Of a short prompt, since a token costs the same but for its attention, and the prompt is timed above.
    short = ids[:, tokens - _PLACES : tokens + _WORDS]
    given = {"attention_mask": torch.ones_like(short)}

    def own(count: int) -> Any:
        return model.generate(short, point_features=[features[0][:_PLACES]], **given, **_settings(count))

    def stock(count: int) -> Any:
        return model.language_model.generate(short.masked_fill(short == place, 5), **given, **_settings(count))

    steps = {
        f"{name} {count}": (lambda run=run, count=count: run(count))
        for name, run in (("own", own), ("stock", stock))
        for count in (1, 1 + _ANSWER)
    }
    found = {name: [one.cpu for one in spent] for name, spent in timed_in_turns(steps, rounds).items()}
    for name in ("own", "stock"):
        both = zip(found[f"{name} {1 + _ANSWER}"], found[f"{name} 1"], strict=True)
        row[f"{name}_token_s"] = min((long - brief) / _ANSWER for long, brief in both)
    return row | {"token_ratio": row["own_token_s"] / row["stock_token_s"]}


@torch.no_grad()
def stock_peak(folder: Path, form: str, tokens: int) -> float:
    """Return the peak in GB of this process, which opens the language model alone and reads as long a prompt."""
    model = opened(folder, form, alone=True)
    ids = prompt(tokens, SpatialLMConfig()).clamp(max=10_000)
    model(ids, attention_mask=torch.ones_like(ids), logits_to_keep=1)
    return resident("VmHWM") / 1e3


def table(rows: list[dict[str, Any]]) -> str:
    """Format as Markdown."""
    lines = ["| | " + " | ".join(f"{row['form']} | its language model alone" for row in rows) + " |"]
    lines.append("|---" * (1 + 2 * len(rows)) + "|")
    shown = {"scan to tokens, s": "encoder_s", "prompt, s": "prompt_s", "a token of the answer, s": "token_s"}
    for title, name in (*shown.items(), ("peak, GB", "peak_gb")):
        cells = []
        for row in rows:
            own, stock = (row.get(f"{side}{name}") for side in ("" if name == "encoder_s" else "own_", "stock_"))
            cells += ["" if value is None else f"{value:.3g}" for value in (own, stock)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    ratios = " | ".join(f"{row['token_ratio']:.2f} |" for row in rows)
    return "\n".join([*lines, f"| times the language model alone, a token | {ratios}"])


def child(*words: str) -> Any:
    """Run this program in a new process, and return what its last line says."""
    program = [sys.executable, "-m", "studies.speed.spatiallm", *words]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(words: list[str] | None = None) -> None:
    """Measure the forms, each in processes of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/spatiallm-speed"), help="of the stored forms")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--points", type=int, default=60_000, help="points of the scan")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is timed; the least counts")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--one", choices=("measure", "peak", "store"), help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder, given = options.folder, ["--folder", str(options.folder), "--points", str(options.points)]
    if options.one:
        (form,) = options.forms
        if options.one == "measure":
            print(json.dumps(measure(folder, form, options.points, options.rounds)))
        elif options.one == "peak":
            print(json.dumps(stock_peak(folder, form, options.tokens)))
        else:
            print(json.dumps([str(stored_form(folder, form, alone)) for alone in (False, True)]))
        return
    rows = []
    for form in options.forms:
        own = [*given, "--forms", form, "--one"]
        child(*own, "store")
        row = child("--rounds", str(options.rounds), *own, "measure")
        row["stock_peak_gb"] = child(*own, "peak", "--tokens", str(row["point_tokens"]))
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(rows))
    if options.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(options.output, {"machine": machine, "forms": rows})


if __name__ == "__main__":
    main()
