"""One protocol for all ways to fine-tune a point transformer: three starts, ten methods, three sets of objects.

    python -m studies.protocol --kicad FOLDER --tiles FOLDER --cpu-minutes 75    # run, or go on
    python -m studies.protocol --report                                          # write the page from the rows

A cell is a set, a start, a method, a seed and a fold; its row is one line of `results/protocol.jsonl`, and is not run
again. An estimate of the CPU seconds of each method comes first. Folds divide the shapes of a set anew for each seed,
so that each shape is tested once a seed. All cells have one rate of learning for adapters and heads, and a smaller one
for full fine-tuning; nothing is selected on test shapes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from examples import run_act_autoencoder, run_act_pretraining
from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    ActModel,
    APPTConfig,
    DAPTConfig,
    GuidedAdapterConfig,
    IDPTConfig,
    PointGSTConfig,
    PPTConfig,
    SideTuningConfig,
    encoder_linear_pattern,
    load_point_dataset,
    read_point_cloud,
)
from hf_any3d.evaluation.statistics import holm
from hf_any3d.pipelines import default_model
from hf_any3d.utils.atomic_files import write_text
from studies.donors.any2point import augmented
from studies.few_scans_draws import UNSEEN, parts
from studies.runs import RECIPES, machine
from studies.speed._measure import saved_bytes, storages

ROWS = Path(__file__).with_name("results") / "protocol.jsonl"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "which_method.md"
SEED = 7
"""Of the choice of shapes."""
FOLDS = 5
BATCH = 16
PATCHES = {"num_groups": 32, "group_size": 16}
RATE, FULL_RATE = 2e-3, 5e-4
"""Learning rates of adapters and heads, and of full fine-tuning."""
ACT_STEPS = (300, 150)
"""Steps of ACT's two stages."""
RESAMPLES = 2000
PIECE = 8.0
"""Side of the squares that tiles are cut into, in meters."""


class Shapes(NamedTuple):
    """Shapes of a set: points `(shapes, points, 3)`, and labels `(shapes,)` from 0."""

    points: Tensor
    labels: np.ndarray


class Cell(NamedTuple):
    """Settings of one run."""

    shapes: str
    start: str
    method: str
    seed: int
    fold: int


_PROMPTS = ("cls", "prompt_mean", "max")
METHODS: dict[str, tuple[Callable[[nn.Module], PeftConfig] | None, Sequence[str]]] = {
    "full": (None, ("cls", "max", "mean")),
    "linear": (None, ("cls", "max", "mean")),
    "LoRA": (
        lambda model: LoraConfig(r=8, target_modules=encoder_linear_pattern(model), modules_to_save=["classifier"]),
        ("cls", "max", "mean"),
    ),
    "guided adapter": (lambda model: GuidedAdapterConfig(), ("cls", "max", "mean")),
    "PointGST": (lambda model: PointGSTConfig(), ("cls", "max", "mean")),
    "IDPT": (lambda model: IDPTConfig(), _PROMPTS),
    "DAPT": (lambda model: DAPTConfig(), _PROMPTS),
    "PPT": (lambda model: PPTConfig(num_groups=16, group_size=16), _PROMPTS),
    "APPT": (lambda model: APPTConfig(), ("cls", "max", "max_plus_mean")),
    "side-tuning": (lambda model: SideTuningConfig(), ("cls", "max", "mean")),
}
"""Config of each method, and what its head pools: three widths of tokens for all."""
STARTS = ("packaged encoder", "ACT pretrained here", "random")
# Rows have the names above.
_TITLES = {"packaged encoder": "bundled encoder"}


def embedded(most: int) -> Shapes:
    """Load test shapes of the ten embedded classes that no start has seen, with or without their labels."""
    rows = load_point_dataset("shapes", split="test").with_format("numpy")
    names = rows.features["label"].names
    labels = np.array([UNSEEN.index(names[label]) if names[label] in UNSEEN else -1 for label in rows["label"]])
    return chosen(rows["points"][:], labels, rows["group"][:], most)


def components(folder: Path, most: int) -> Shapes:
    """Load electronic parts of ten classes, drawn among those with enough shapes."""
    found = parts(folder)
    counts = np.bincount(found.labels)
    kinds = np.random.default_rng(SEED).permutation(np.flatnonzero(counts >= 30))[:10]
    places = {kind: number for number, kind in enumerate(sorted(kinds))}
    labels = np.array([places.get(label, -1) for label in found.labels])
    return chosen(found.points, labels, found.groups, most)


def airborne(folder: Path, most: int) -> Shapes:
    """Cut labeled airborne tiles into squares of which eight points in ten have one class; Y up, as other shapes."""
    kinds = {2: 0, 3: 1, 4: 1, 5: 1, 6: 2}  # ground, vegetation, buildings
    points, labels = [], []
    for file in sorted(folder.glob("*.la[sz]")):
        cloud = read_point_cloud(file)
        squares = np.unique((cloud.points[:, :2] // PIECE).astype(int), axis=0, return_inverse=True)[1].ravel()
        order = np.argsort(squares, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(squares[order])) + 1):
            codes = np.array([kinds.get(int(code), -1) for code in cloud.labels[rows]])
            kind = np.bincount(codes[codes >= 0], minlength=3).argmax()
            rows = rows[codes == kind]
            if len(rows) < 128 or len(rows) < 0.8 * len(codes):
                continue
            kept = np.random.default_rng(SEED).choice(len(rows), 1024, replace=len(rows) < 1024)
            x, y, z = cloud.points[rows[kept]].T
            points.append(np.stack([x, z, -y], axis=1))
            labels.append(kind)
    # Squares do not overlap, so that each is a group of its own.
    # Twice as many of each, since there are only three classes.
    return chosen(np.stack(points), np.array(labels), np.arange(len(points)), 2 * most)


def chosen(points: np.ndarray, labels: np.ndarray, groups: np.ndarray, most: int) -> Shapes:
    """Choose at most so many shapes of each class, none of the same group, and fit them into the unit sphere."""
    generator = np.random.default_rng(SEED)
    rows: list[int] = []
    for label in range(labels.max() + 1):
        own = generator.permutation(np.flatnonzero(labels == label))
        _, first = np.unique(groups[own], return_index=True)
        rows += list(own[np.sort(first)][:most])
    kept = torch.from_numpy(points[rows].astype(np.float32))
    kept = kept - kept.mean(dim=1, keepdim=True)
    kept = kept / kept.norm(dim=2).amax(dim=1)[:, None, None]
    return Shapes(kept, labels[rows])


def fold_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the number of the fold that each shape is tested in; folds have equally many of each class."""
    generator = np.random.default_rng([SEED, seed])
    folds = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        folds[rows] = (np.arange(len(rows)) + generator.integers(FOLDS)) % FOLDS
    return folds


def pretrain(folder: Path) -> Path:
    """Run ACT's two stages on the embedded training shapes, without their labels, and return the encoder's folder."""
    autoencoder, student = folder / "autoencoder", folder / "student"
    shared = ["--per_device_eval_batch_size", "64", "--report_to", "none", "--disable_tqdm", "True"]
    if not (autoencoder / "metrics.json").is_file():
        words = ["--teacher", "none", "--max_steps", str(ACT_STEPS[0]), "--output_dir", str(autoencoder), *shared]
        recipe = folder / "autoencoder.yaml"
        # Its settings of a teacher have no meaning without one.
        text = (RECIPES / "shapes_act_autoencoder.yaml").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.startswith(("teacher", "  num_prompts"))]
        base = f"extends: {RECIPES / 'base' / 'shapes_act.yaml'}"
        write_text(recipe, "\n".join(base if line.startswith("extends") else line for line in lines))
        run_act_autoencoder.main([str(recipe), *words])
    if not (student / "metrics.json").is_file():
        words = ["--autoencoder", str(autoencoder), "--max_steps", str(ACT_STEPS[1]), "--output_dir", str(student)]
        run_act_pretraining.main([str(RECIPES / "shapes_act_pretraining.yaml"), *words, *shared])
    return student


def encoder_of(start: str, act: Path | None) -> dict[str, Tensor] | None:
    """Return the weights of an encoder; None for random ones."""
    if start == "random":
        return None
    source = default_model() if start == "packaged encoder" else act
    return ActModel.from_pretrained(source).state_dict()


def build(method: str, weights: Mapping[str, Tensor] | None, classes: int, seed: int) -> nn.Module:
    """Build a classifier around an encoder, of which a method trains some weights."""
    torch.manual_seed(seed)
    config_of, pooling = METHODS[method]
    sizes = ActConfig.from_pretrained(default_model()).to_dict()
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "patch_widths", "qkv_bias")
    config = ActConfig(
        **{name: sizes[name] for name in kept}, **PATCHES, pooling=list(pooling), head_widths=[], num_labels=classes
    )
    model = ActForPointCloudClassification(config)
    if weights is not None:
        model.act.load_state_dict(weights)
    if config_of is not None:
        return get_peft_model(model, config_of(model)).train()
    for parameter in model.act.parameters():
        parameter.requires_grad_(method == "full")
    return model.train()


def train(model: nn.Module, shapes: Shapes, rows: np.ndarray, steps: int, rate: float, seed: int) -> int:
    """Train on some shapes; returns the bytes that the first step saves for its backward pass."""
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    labels = torch.from_numpy(shapes.labels)
    saved, waiting = 0, torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(waiting) < BATCH:
            waiting = torch.cat([waiting, torch.from_numpy(rows)[torch.randperm(len(rows), generator=generator)]])
        batch, waiting = waiting[:BATCH], waiting[BATCH:]
        inputs = {"points": augmented(shapes.points[batch], generator), "labels": labels[batch]}
        if step == 0:
            # Counted in a pass of its own.
            saved = saved_bytes(lambda inputs=inputs: model(**inputs).loss, storages(model))
        model(**inputs).loss.backward()
        nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return saved


def run(cell: Cell, shapes: Shapes, weights: Mapping[str, Tensor] | None, epochs: float) -> dict[str, Any]:
    """Train and test a cell."""
    folds = fold_of(shapes.labels, cell.seed)
    rows, tested = np.flatnonzero(folds != cell.fold), np.flatnonzero(folds == cell.fold)
    begun, spent = time.perf_counter(), time.process_time()
    model = build(cell.method, weights, int(shapes.labels.max()) + 1, cell.seed)
    steps = max(1, round(epochs * len(rows) / BATCH))
    saved = train(model, shapes, rows, steps, FULL_RATE if cell.method == "full" else RATE, cell.seed)
    model.eval()
    with torch.inference_mode():
        answers = model(points=shapes.points[torch.from_numpy(tested)]).logits.argmax(dim=1).numpy()
    return cell._asdict() | {
        "tested": tested.tolist(),
        "labels": shapes.labels[tested].tolist(),
        "correct": "".join(str(int(one)) for one in answers == shapes.labels[tested]),
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "steps": steps,
        "saved_bytes": saved,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - spent, 2),
    }


def read_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read settings and rows of a file; a line that an interrupted run has not finished is left out."""
    settings, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return json.loads(settings), rows


def estimate(shapes: Mapping[str, Shapes], epochs: float) -> dict[str, float]:
    """Time a few steps of each method, print them, and return the CPU seconds of a cell, averaged over the sets."""
    found = {}
    some = next(iter(shapes.values()))
    rows = np.arange(len(some.labels))
    for method in METHODS:
        model = build(method, None, int(some.labels.max()) + 1, 0)
        train(model, some, rows, 1, 0.0, 0)
        begun = time.process_time()
        train(model, some, rows, 4, 0.0, 0)
        # Five forward passes and four backward ones, which is what a quarter more of a step is
        step = (time.process_time() - begun) / 4
        sizes = [len(one.labels) * (1 - 1 / FOLDS) / BATCH for one in shapes.values()]
        # Testing takes a third of the time of a step for each batch.
        found[method] = step * float(np.mean(sizes)) * (epochs + 1 / (3 * (FOLDS - 1)))
        print(f"{method}: {found[method]:.1f} CPU s a cell")
    return found


# ------------------------------------------------------------------------------------------------------------- page


_Answers = Mapping[str, tuple[np.ndarray, np.ndarray]]


def matrix(rows: Sequence[Mapping[str, Any]], start: str, method: str) -> _Answers:
    """Return by set the mean over seeds of whether each shape is answered correctly, and its label."""
    found: dict[str, dict[int, list[int]]] = {}
    labels: dict[str, dict[int, int]] = {}
    for row in rows:
        if (row["start"], row["method"]) != (start, method):
            continue
        own = found.setdefault(row["shapes"], {})
        for shape, label, correct in zip(row["tested"], row["labels"], row["correct"], strict=True):
            own.setdefault(shape, []).append(int(correct))
            labels.setdefault(row["shapes"], {})[shape] = label
    result = {}
    for name, own in found.items():
        order = sorted(own)
        result[name] = (np.array([np.mean(own[shape]) for shape in order]), np.array([labels[name][s] for s in order]))
    return result


def balanced(correct: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean accuracy of classes, in percent."""
    return 100 * float(np.mean([correct[labels == label].mean() for label in np.unique(labels)]))


def resampled(correct: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the balanced mean of shapes drawn anew within each class, `(RESAMPLES,)`, in percent."""
    generator = np.random.default_rng(SEED)
    means = []
    for label in np.unique(labels):
        own = correct[labels == label]
        means.append(own[generator.integers(len(own), size=(RESAMPLES, len(own)))].mean(axis=1))
    return 100 * np.mean(means, axis=0)


def paired(one: _Answers, other: _Answers) -> tuple[float, float, float, float]:
    """Return the mean difference in points over sets, its 95 % interval, and the p of a test of flipped signs."""
    generator = np.random.default_rng(SEED)
    means, draws, flips = [], [], []
    for name in one.keys() & other.keys():
        difference, labels = one[name][0] - other[name][0], one[name][1]
        means.append(balanced(difference, labels))
        draws.append(resampled(difference, labels))
        signs = generator.choice([-1.0, 1.0], size=(RESAMPLES, len(difference))) * difference
        classes = [signs[:, labels == label].mean(axis=1) for label in np.unique(labels)]
        flips.append(100 * np.mean(classes, axis=0))
    mean = float(np.mean(means))
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    chance = (1 + np.sum(np.abs(np.mean(flips, axis=0)) >= abs(mean) - 1e-9)) / (1 + RESAMPLES)
    return mean, float(low), float(high), float(chance)


def page(settings: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Return the page of the rows, in Markdown."""
    sets = sorted({row["shapes"] for row in rows})
    runs = len({(row["seed"], row["fold"]) for row in rows})
    lines = [
        "# Which method to fine-tune with",
        "",
        "Ten ways to fine-tune a small point transformer on a few labeled shapes, from three starts, by one protocol.",
        "",
        *([_TRIAL.format(runs=runs), ""] if runs < 3 * FOLDS else []),
        "| | |",
        "|---|---|",
        f"| sets | {', '.join(sets)}; at most {settings['most']} shapes a class, twice as many of airborne pieces |",
        f"| runs | {runs} divisions (of three seeds and five folds) of each set, {len(rows):,} in all |",
        f"| model | width 96, three blocks, {settings['points']} points in 32 patches of 16 |",
        f"| training | {settings['epochs']:g} epochs in batches of {BATCH} |",
        f"| learning rate | {RATE:g}; of full fine-tuning {FULL_RATE:g} |",
        f"| ACT pretrained here | {ACT_STEPS[0]} and {ACT_STEPS[1]} steps on 433 shapes without labels; its teacher "
        "has no transformer |",
        f"| machine | {settings['machine']}, one thread |",
        "",
        "No start has seen these shapes, and nothing is selected on test shapes. Settings of the methods are their "
        "defaults. `linear` trains the head alone. Intervals (95 %) draw the shapes of each class anew. Differences "
        "to the head alone are paired by shape; p is that of flipped signs, adjusted for their number (Holm).",
    ]
    for start in STARTS:
        found = {method: matrix(rows, start, method) for method in METHODS}
        found = {method: one for method, one in found.items() if one}
        # Nothing to compare with yet.
        if "linear" not in found:
            continue
        others = [method for method in found if method != "linear"]
        tests = {method: paired(found[method], found["linear"]) for method in others}
        chances = dict(zip(others, holm([tests[method][3] for method in others]), strict=True))
        lines += ["", f"## Start: {_TITLES.get(start, start)}", ""]
        head = ["method", "balanced accuracy, %", *sets, "against the head alone", "p", "trained", "CPU s", "MB saved"]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for method, one in found.items():
            own = [row for row in rows if (row["start"], row["method"]) == (start, method)]
            low, high = np.quantile(np.mean([resampled(*values) for values in one.values()], axis=0), [0.025, 0.975])
            mean = np.mean([balanced(*values) for values in one.values()])
            cells = [f"{balanced(*one[name]):.1f}" if name in one else "" for name in sets]
            against, chance = "", ""
            if method in tests:
                difference, under, over, _ = tests[method]
                against, chance = f"{difference:+.1f} ({under:+.1f} to {over:+.1f})", f"{chances[method]:.3f}"
            costs = [f"{np.median([row[name] for row in own]) / unit:{how}}" for name, unit, how in _COSTS]
            cells = [f"{mean:.1f} ({low:.1f} to {high:.1f})", *cells, against, chance, *costs]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        if not others:
            continue
        best = max(others, key=lambda method: tests[method][0])
        same = [method for method in found if method != best and paired(found[best], found[method])[3] > 0.05]
        lines += ["", f"{best[0].upper()}{best[1:]} has the highest mean."]
        if same:
            lines[-1] += f" The difference to {', '.join(same)} is not significant (p above 0.05, not adjusted)."
    lines += [
        "",
        "CPU seconds are of a run with training and test, MB what a step keeps for its backward pass. "
        "`python -m studies.protocol --report` writes this page from the [rows](../studies/results/protocol.jsonl).",
        "",
    ]
    return "\n".join(lines)


_TRIAL = (
    "**Figures of {runs} of 15 divisions: five are those of one seed, so that each shape is tested once for them.** "
    "What the seed of a training changes is not in the intervals. The same command goes on, for about an hour of one "
    "core in all: `python -m studies.protocol --kicad FOLDER --tiles FOLDER`."
)


_COSTS = (("trained", 1, ",.0f"), ("cpu_seconds", 1, ".1f"), ("saved_bytes", 1e6, ".1f"))
"""Figures of a row, their units, and how they are shown."""


def cells(sets: Sequence[str], seeds: int, folds: int) -> Iterator[Cell]:
    """Yield all cells; an interrupted run has all methods of the first seeds and folds."""
    for seed, fold, name, start, method in itertools.product(range(seeds), range(folds), sets, STARTS, METHODS):
        yield Cell(name, start, method, seed, fold)


def main(words: Sequence[str] | None = None) -> None:
    """Run the cells that have no row yet, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kicad", type=Path, help="folder with the electronic parts")
    parser.add_argument("--tiles", type=Path, help="folder with labeled airborne tiles")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    parser.add_argument("--act", type=Path, default=Path("outputs/protocol_act"), help="folder of ACT's two stages")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--most", type=int, default=10, help="shapes of a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--cpu-minutes", type=float, default=75, help="stop before a cell that would exceed them")
    parser.add_argument("--estimate", action="store_true", help="print the estimate alone")
    parser.add_argument("--report", action="store_true", help="write the page from the rows alone")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(words)
    if given.report:
        write_text(given.page, page(*read_rows(given.output)))
        return
    torch.set_num_threads(1)
    kinds: dict[str, Callable[[int], Shapes]] = {"embedded objects": embedded}
    if given.kicad is not None:
        kinds["electronic parts"] = functools.partial(components, given.kicad)
    if given.tiles is not None:
        kinds["airborne pieces"] = functools.partial(airborne, given.tiles)
    shapes = {name: load(given.most) for name, load in kinds.items()}
    shapes = {name: Shapes(one.points[:, : given.points], one.labels) for name, one in shapes.items()}
    for name, one in shapes.items():
        print(f"{name}: {len(one.labels)} shapes of {int(one.labels.max()) + 1} classes")
    expected = estimate(shapes, given.epochs)
    todo = list(cells(list(shapes), given.seeds, given.folds))
    print(f"{len(todo)} cells: about {sum(expected[cell.method] for cell in todo) / 60:.0f} CPU minutes, ACT aside")
    if given.estimate:
        return
    settings = {name: getattr(given, name) for name in ("epochs", "points", "most")} | {"machine": machine()}
    if not given.output.is_file():
        write_text(given.output, json.dumps(settings) + "\n")
    stored, rows = read_rows(given.output)
    if stored != settings:
        raise SystemExit(f"{given.output}: has rows of other settings, {stored}; move it or give another --output")
    done = {Cell(*(row[name] for name in Cell._fields)) for row in rows}
    act = pretrain(given.act)
    weights = {start: encoder_of(start, act) for start in STARTS}
    # The whole process counts, with ACT's two stages, but not what earlier processes have taken.
    with given.output.open("a", encoding="utf-8") as file:
        for cell in todo:
            if cell in done:
                continue
            if time.process_time() + expected[cell.method] > 60 * given.cpu_minutes:
                print(f"stopped before {cell}: {given.cpu_minutes:g} CPU minutes are over; the same command goes on")
                break
            row = run(cell, shapes[cell.shapes], weights[cell.start], given.epochs)
            file.write(json.dumps(row) + "\n")
            file.flush()
    write_text(given.page, page(*read_rows(given.output)))


if __name__ == "__main__":
    main()
