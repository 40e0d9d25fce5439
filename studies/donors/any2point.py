"""Does pretraining help Any2Point, and of which modality? The same model around real text, vision and audio layers.

    make donors
    python -m studies.donors.any2point --kicad PATH     # folder of train.parquet and test.parquet; without it two sets
    python -m studies.donors.any2point --report

**Fixed before the first run.** The model, its adapter, recipe and seeds are those of `earlier_recipe`, with ten epochs
in batches of 32, around the first two layers of MiniLM (text), SmolLM2-135M (text, a decoder with rotary positions),
DINOv2-small (vision) and Whisper tiny's encoder (audio): with their pretrained weights, with random ones, and with
each tensor of the pretrained ones shuffled. Tokenizers start with random weights. Sets are the embedded shapes (433
training shapes of 18 classes, 141 test shapes), generated shapes (20 and 10 of each of 48 classes), and electronic
components (863 and 288 of 23 classes), whole and with ten training shapes a class, these for 20 epochs; three seeds.
The effect in a modality is the difference of accuracy, pretrained minus random, over all sets, sizes, seeds and test
shapes; pretraining helps or harms if its 95 % interval excludes zero. Shuffled weights and LoRA (r = 8) instead of the
guided adapter, around pretrained weights and all training shapes, are second readings.

A cell is appended to the results when it ends and is not repeated. All take some six CPU hours, or minutes on a GPU
(`--device cuda --processes 12`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from datasets import load_dataset
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from hf_any3d import load_point_dataset
from hf_any3d.training.peft_methods import build_peft_config
from studies import earlier_recipe
from studies.donors import donors_folder
from studies.generated_shapes import generate
from studies.tables import read_table

DONORS = {"minilm": "text", "smollm2": "text, decoder", "dinov2": "vision", "whisper": "audio"}
WEIGHTS = ("pretrained", "random", "shuffled")
METHODS = {"guided_adapter": earlier_recipe.ADAPTER, "lora": {"r": 8, "lora_alpha": 16}}
SEEDS, LAYERS, SHOTS = (0, 1, 2), 2, 10
BATCH, EPOCHS, FEW_EPOCHS = 32, 10, 20
STORED = Path(__file__).parents[1] / "results" / "donors_any2point.parquet"


class Cell(NamedTuple):
    """A training; `shots` is 0 for all training shapes."""

    seed: int
    method: str
    shots: int
    points: str
    donor: str
    weights: str


class Split(NamedTuple):
    """Clouds `(rows, points, 3)` and labels `(rows,)`."""

    points: Tensor
    labels: Tensor


def cells(sets: Iterable[str]) -> list[Cell]:
    """List the cells: the question first, a seed after the other."""
    sets = list(sets)
    main = itertools.product(SEEDS, ["guided_adapter"], (0, SHOTS), sets, DONORS, WEIGHTS)
    others = itertools.product(SEEDS, ["lora"], (0,), sets, DONORS, WEIGHTS[:1])
    return [Cell(*cell) for cell in (*main, *others)]


def load_sets(kicad: Path | None) -> dict[str, tuple[Split, Split, int]]:
    """Load training and test split of each set, and its number of classes."""
    shapes = load_point_dataset("shapes")
    sets = {"embedded": (shapes["train"], shapes["test"])}
    sets["generated"] = (generate(20, seed=1), generate(10, seed=2))
    if kicad is not None:
        files = {split: str(kicad / f"{split}.parquet") for split in ("train", "test")}
        parts = load_dataset("parquet", data_files=files)
        sets["components"] = (parts["train"], parts["test"])
    return {name: (*map(_split_of, splits), splits[0].features["label"].num_classes) for name, splits in sets.items()}


def _split_of(rows: Any) -> Split:
    rows = rows.with_format("numpy")
    points = np.stack([np.asarray(row, dtype=np.float32) for row in rows["points"]])
    return Split(torch.from_numpy(points), torch.from_numpy(np.asarray(rows["label"], dtype=np.int64)))


def build(cell: Cell, num_labels: int) -> PeftModel:
    """Build the model of a cell."""
    names = [str(number) for number in range(num_labels)]
    changes: dict[str, Any] = {"num_layers": LAYERS, "encoder_weights": cell.weights}
    if cell.donor == "smollm2":
        changes["token_scale"] = None  # rotary positions have no spread that tokens could be scaled to
    model = earlier_recipe.build_wrapper(cell.seed, names, donors_folder() / cell.donor, **changes)
    return get_peft_model(model, build_peft_config(cell.method, model, METHODS[cell.method]))


def train(cell: Cell, splits: tuple[Split, Split, int], device: str) -> dict[str, Any]:
    """Train a cell, and return which test shapes are right (a digit each), the loss, seconds and sizes."""
    start = time.perf_counter()
    rows, test, num_labels = splits
    model = build(cell, num_labels).to(device).train()
    generator = torch.Generator().manual_seed(cell.seed)
    if cell.shots:
        order = torch.randperm(len(rows.labels), generator=generator)
        kept = [order[rows.labels[order] == label][: cell.shots] for label in range(num_labels)]
        rows = Split(*(part[torch.cat(kept)] for part in rows))
    batches = len(rows.labels) // BATCH
    steps = batches * (FEW_EPOCHS if cell.shots else EPOCHS)
    settings = earlier_recipe.TRAINING
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings["learning_rate"], weight_decay=settings["weight_decay"])
    schedule = get_cosine_schedule_with_warmup(optimizer, round(settings["warmup_steps"] * steps), steps)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(rows.labels), generator=generator)
        chosen = order[step % batches * BATCH :][:BATCH]
        logits = model(points=augmented(rows.points[chosen], generator).to(device)).logits
        smoothing = earlier_recipe.LABEL_SMOOTHING
        loss = nn.functional.cross_entropy(logits, rows.labels[chosen].to(device), label_smoothing=smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, settings["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(points=part.to(device)).logits.cpu() for part in test.points.split(96)])
    correct = logits.argmax(dim=1) == test.labels
    return cell._asdict() | {
        "accuracy": float(correct.float().mean()),
        "loss": float(nn.functional.cross_entropy(logits, test.labels)),
        "correct": "".join(str(int(one)) for one in correct),
        "steps": steps,
        "trained": sum(parameter.numel() for parameter in trained),
        "seconds": round(time.perf_counter() - start, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def augmented(points: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each axis, shift, jitter and shuffle clouds `(batch, points, 3)`, as `earlier_recipe.AUGMENTATION`."""
    batch, count, _ = points.shape
    uniform = torch.rand(2, batch, 1, 3, generator=generator)
    noise = (0.01 * torch.randn(points.shape, generator=generator)).clamp_(-0.05, 0.05)
    points = points * (0.67 + uniform[0] * (1.5 - 0.67)) + (0.2 * uniform[1] - 0.1) + noise
    return points[:, torch.randperm(count, generator=generator)]


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Tabulate mean accuracies, and the effect of pretraining with its interval."""
    found = {Cell(**{name: row[name] for name in Cell._fields}): row for row in rows}
    sets = [name for name in ("embedded", "generated", "components") if any(cell.points == name for cell in found)]
    columns = [(points, shots) for shots in (0, SHOTS) for points in sets]
    titles = [f"{points}, {f'{shots} a class' if shots else 'all'}" for points, shots in columns]
    lines = [f"| layers | weights | {' | '.join(titles)} |", "|---" * (2 + len(columns)) + "|"]
    kinds = [("guided_adapter", weights) for weights in WEIGHTS] + [("lora", "pretrained")]
    for donor, (method, weights) in itertools.product(DONORS, kinds):
        means = [
            [row["accuracy"] for cell, row in found.items() if cell[1:] == (method, shots, points, donor, weights)]
            for points, shots in columns
        ]
        shown = [f"{100 * np.mean(values):.1f}" if values else "" for values in means]
        if any(shown):
            name = f"{weights}, LoRA" if method == "lora" else weights
            lines.append(f"| {donor} ({DONORS[donor]}) | {name} | {' | '.join(shown)} |")
    lines += ["", "| layers | pretrained | random | shuffled | − random | − shuffled |", "|---|---|---|---|---|---|"]
    for donor in DONORS:
        means, effects = zip(*(effect(found, donor, weights) for weights in WEIGHTS), strict=True)
        lines.append(f"| {donor} ({DONORS[donor]}) | {' | '.join((*means, *effects[1:]))} |")
    return "\n".join(lines) + "\n"


def effect(found: dict[Cell, dict[str, Any]], donor: str, weights: str) -> tuple[str, str]:
    """Return the mean accuracy, %, and the difference of the pretrained weights' to it, with its 95 % interval.

    Sets and sizes count alike. The variance of a set's mean is that between its test shapes plus that between seeds.
    """
    accuracies, means, variances = [], [], []
    pairs = [(cell, cell._replace(weights=weights)) for cell in found if cell.weights == "pretrained"]
    pairs = [pair for pair in pairs if pair[0].donor == donor and pair[0].method == "guided_adapter"]
    pairs = [pair for pair in pairs if pair[1] in found]
    for _, some in itertools.groupby(sorted(pairs, key=lambda pair: pair[0][2:4]), key=lambda pair: pair[0][2:4]):
        correct = np.array([[list(map(int, found[cell]["correct"])) for cell in pair] for pair in some])
        differences = correct[:, 0] - correct[:, 1]  # (seeds, shapes)
        accuracies.append(correct[:, 1].mean())
        seeds, shapes = differences.shape
        means.append(differences.mean())
        between_seeds = differences.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
        variances.append(differences.mean(axis=0).var(ddof=1) / shapes + between_seeds)
    if not means:
        return "", ""
    interval = f"{100 * np.mean(means):+.1f} ± {196 * np.sqrt(np.sum(variances)) / len(means):.1f}"
    return f"{100 * np.mean(accuracies):.1f}", interval


_SETS: dict[str, tuple[Split, Split, int]] = {}


@cache
def _start(device: str) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def _run(task: tuple[Cell, str, float]) -> dict[str, Any] | None:
    cell, device, deadline = task
    _start(device)
    return train(cell, _SETS[cell.points], device) if time.time() < deadline else None


def main() -> None:
    """Run cells that are not among the results, or tabulate these."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kicad", type=Path, help="folder of the components' train.parquet and test.parquet")
    parser.add_argument("--sets", nargs="+", choices=("embedded", "generated", "components"), help="train on these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell after so many")
    parser.add_argument("--output", type=Path, default=Path("outputs/donors/any2point.jsonl"))
    parser.add_argument("--report", action="store_true", help="only tabulate; without results, the stored ones")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.output.exists():
        rows = [json.loads(line) for line in options.output.read_text().splitlines()]
    elif options.report:
        rows = read_table(STORED)["runs"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if not options.report:
        _SETS.update(load_sets(options.kicad))
        known = {Cell(**{name: row[name] for name in Cell._fields}) for row in rows}
        deadline = time.time() + options.seconds
        tasks = [(cell, options.device, deadline) for cell in cells(options.sets or _SETS) if cell not in known]
        # Forked before anything touches the device: the sets are shared.
        with multiprocessing.get_context("fork").Pool(options.processes) as pool, options.output.open("a") as file:
            for row in filter(None, pool.imap_unordered(_run, tasks)):
                file.write(json.dumps(row) + "\n")
                file.flush()
                rows.append(row)
                print(*(row[name] for name in (*Cell._fields, "accuracy", "seconds")), flush=True)
    print(report(rows))


if __name__ == "__main__":
    main()
