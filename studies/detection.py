"""Boxes around objects of generated rooms: 3DETR, a pretrained encoder under its decoder, and clusters with labels.

    python -m studies.detection                              # everything that has not run yet
    python -m studies.detection --arms clusters --seeds 0    # some of it

The plan, chosen before the first result, and the results: `results/detection.md`. Runs are stored and not repeated; a
training that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import nn
from transformers import Trainer, set_seed

from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    ActModel,
    PointCloudProcessor,
    encoder_linear_pattern,
    load_point_dataset,
)
from hf_any3d.data.boxes import build_changes
from hf_any3d.data.point_arrays import turn_up_axis
from hf_any3d.evaluation.detection import score_detections
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.pipelines import default_model
from hf_any3d.training.detection import DetectionTrainer, DetectionTrainingArguments, SceneRows, collate_scenes
from hf_any3d.training.program import EpochCallback
from studies.runs import kept_run, machine, runs_parser, stopwatch, use_threads, write_results

ROOMS = {"train_rooms": 1088, "validation_rooms": 32, "test_rooms": 96, "num_points": 2048, "num_objects": 6}
HELD_OUT = 64
"""Rooms of training shapes that no model is trained on."""
STEPS, BATCH, LEARNING_RATE = 1000, 8, 1e-3
TOKENS = 128
SIZES: dict[str, Any] = {
    **{"hidden_size": 128, "decoder_layers": 3, "decoder_ffn_dim": 128, "num_queries": 24, "num_heading_bins": 1},
    **{"max_center_offset": 1.0, "dropout": 0.0, "head_dropout": 0.0},
}
OWN_ENCODER: dict[str, Any] = {
    **{"num_tokens": TOKENS, "group_radius": 0.3, "num_neighbors": 24, "group_widths": (32, 64)},
    **{"encoder_hidden_size": 128, "encoder_layers": 2, "encoder_ffn_dim": 128, "encoder_dropout": 0.0},
    "attention_radii": None,
}
LORA_RANK = 8
THRESHOLDS = (0.25, 0.5)
RESAMPLES = 1000
FLOOR = 0.03
"""Height up to which points are the floor, in meters."""
LINKS = (0.15, 0.2, 0.25, 0.3, 0.4)
"""Distances at which points of a cluster are linked, to choose from on the validation rooms."""
FEWEST = 8
"""Points of a cluster."""
ARMS = {
    "clusters": "connected components, packaged classifier",
    "3detr": "3DETR, all trained",
    "pretrained": "packaged ACT encoder, frozen, with LoRA, under the decoder",
    "random": "the same with random weights",
}

Answer = Mapping[str, np.ndarray]


def load_rooms() -> tuple[DatasetDict, dict[str, Dataset]]:
    """Compose the rooms: those to train and to choose on, and those to test with."""
    splits = load_point_dataset("rooms_with_boxes", **ROOMS)
    rows, count = splits["train"], ROOMS["train_rooms"] - HELD_OUT
    tests = {"seen shapes": rows.select(range(count, len(rows))), "unseen shapes": splits["test"]}
    return DatasetDict(train=rows.select(range(count)), validation=splits["validation"]), tests


def class_names(rows: Dataset) -> list[str]:
    """Return the names of the classes of the boxes."""
    return rows.features["box_labels"].feature.names


def processor() -> PointCloudProcessor:
    """Build the processor of the detectors."""
    return PointCloudProcessor(num_points=ROOMS["num_points"], center=False, scale=None, up_axis="z")


def references(rows: Dataset) -> list[Answer]:
    """Return the objects of each room."""
    return [{"boxes": np.asarray(row["boxes"]), "labels": np.asarray(row["box_labels"])} for row in rows]


# Clusters


def clusters(points: np.ndarray, link: float) -> list[np.ndarray]:
    """Divide the points above the floor, `(points, 3)`, into those that chains of links of some length connect."""
    points = points[points[:, 2] > FLOOR]
    if not len(points):
        return []
    graph = cKDTree(points).sparse_distance_matrix(cKDTree(points), link).tocsr()
    count, number = connected_components(graph, directed=False)
    parts = [points[number == one] for one in range(count)]
    return [part for part in parts if len(part) >= FEWEST]


class ClusterDetector:
    """Boxes around clusters, with the scores of the packaged classifier, divided among the classes of the rooms.

    Args:
        names: Classes of the rooms.
        link: Distance at which points are linked.
    """

    def __init__(self, names: Sequence[str], link: float):
        self.model = ActForPointCloudClassification.from_pretrained(default_model())
        self.processor = PointCloudProcessor.from_pretrained(default_model())
        self.places = [self.model.config.label2id[name] for name in names]
        self.link = link

    @torch.no_grad()
    def __call__(self, points: np.ndarray) -> Answer:
        """Answer for the points `(points, 3)` of a room, each box once for every class."""
        found = clusters(points, self.link)
        if not found:
            return {"boxes": np.zeros((0, 7)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
        turned = [turn_up_axis(part, "z", "y") for part in found]
        logits = self.model(self.processor(turned, return_tensors="pt")["points"]).logits
        scores = logits[:, self.places].softmax(dim=-1).numpy()  # (clusters, classes)
        boxes = np.stack([_box_around(part) for part in found])
        rows, classes = np.indices(scores.shape)
        return {"boxes": boxes[rows.ravel()], "labels": classes.ravel(), "scores": scores.ravel()}


def _box_around(points: np.ndarray) -> np.ndarray:
    low, high = points.min(axis=0), points.max(axis=0)
    low[2] = 0.0  # what was taken for floor
    return np.array([*(low + high) / 2, *np.maximum(high - low, 0.02), 0.0])


def run_clusters(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Choose the link on the validation rooms and answer for the test rooms; there is nothing to train."""
    splits, tests = load_rooms()
    names = class_names(splits["train"])
    chosen, best = LINKS[0], -1.0
    with stopwatch() as spent:
        for link in LINKS:
            rows = splits["validation"]
            detector = ClusterDetector(names, link)
            answers = [detector(np.asarray(points)) for points in rows["points"]]
            score = summary(answers, references(rows))["ap_25"]
            print(f"link {link}: AP25 {100 * score:.1f}", flush=True)
            if score > best:
                chosen, best = link, score
    detector = ClusterDetector(names, chosen)
    found = {name: [detector(np.asarray(points)) for points in rows["points"]] for name, rows in tests.items()}
    return {
        "link": chosen,
        "trained": 0,
        "total": count_parameters(detector.model)[1],
        **spent,
        **scored(found, tests),
    }


# Detectors


def build(arm: str, seed: int, names: Sequence[str], folder: Path) -> nn.Module:
    """Build the detector of an arm, untrained."""
    set_seed(seed)
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    if arm == "3detr":
        return Detr3DForPointCloudObjectDetection(Detr3DConfig(**SIZES, **OWN_ENCODER, **labels))
    place = folder / f"encoder-{arm}-{seed}"
    if not place.is_dir():
        encoder = ActForPointCloudClassification.from_pretrained(default_model()).act
        if arm == "random":
            encoder = ActModel(ActConfig.from_pretrained(default_model()))
        # Patches of a room that are about as large, in meters, as those of an object in the unit sphere.
        encoder.config.num_groups = TOKENS
        encoder.save_pretrained(place)
    model = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(
        str(place), point_encoder_up_axis="y", **SIZES, **labels
    )
    return get_peft_model(model, LoraConfig(r=LORA_RANK, target_modules=encoder_linear_pattern(model)))


def run_detector(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train the detector of an arm and answer for the test rooms."""
    splits, tests = load_rooms()
    model = build(arm, seed, class_names(splits["train"]), options.output_dir)
    trained, total = count_parameters(model)
    place = options.output_dir / "trainer" / f"{arm}-{seed}"
    arguments = DetectionTrainingArguments(
        str(place),
        seed=seed,
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        max_grad_norm=1.0,
        eval_strategy="no",
        load_best_model_at_end=False,
        save_strategy="steps",
        save_steps=100,
        save_total_limit=1,
        logging_steps=50,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    changes = build_changes([f"flip:axis={axis},along_axes=True" for axis in "xy"])
    rows = SceneRows(splits["train"], processor(), changes, seed)
    trainer = DetectionTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=processor(),
        data_collator=collate_scenes,
        callbacks=[EpochCallback(rows)],
    )
    with stopwatch() as spent:
        trainer.train(resume_from_checkpoint=any(place.glob("checkpoint-*")) or None)
    found = {name: list(answers_of(trainer, rows)) for name, rows in tests.items()}
    return {"trained": trained, "total": total, "steps": options.steps, **spent, **scored(found, tests)}


@torch.no_grad()
def answers_of(trainer: Trainer, rows: Dataset) -> Iterator[Answer]:
    """Answer for rooms, each box once for every class."""
    model = trainer.model.eval()
    for room in SceneRows(rows, processor()):
        output = model(points=room["points"][None])
        found = processor().post_process_object_detection(
            output, threshold=0.0, scores="per_class", nms_per_class=True, min_objectness=0.05
        )
        yield {name: values.numpy() for name, values in found[0].items()}


# Figures


def outcomes(found: Answer, given: Answer) -> dict[float, dict[int, tuple[np.ndarray, np.ndarray, int]]]:
    """Return, for a room, the threshold and the class: scores of the answers, which are right, number of objects."""
    result: dict[float, dict[int, tuple[np.ndarray, np.ndarray, int]]] = {}
    for threshold, classes in score_detections([found], [given], THRESHOLDS).items():
        result[threshold] = {}
        for one, score in classes.items():
            own = np.sort(found["scores"][found["labels"] == one])[::-1]
            right = np.diff(score.recalls * score.num_objects, prepend=0.0) > 0.5
            result[threshold][one] = own, right, score.num_objects
    return result


def mean_precision(rooms: Sequence[dict[int, tuple[np.ndarray, np.ndarray, int]]]) -> dict[int, float]:
    """Compute the average precision of each class with objects over rooms, see `outcomes`."""
    precisions = {}
    for one in sorted({one for room in rooms for one in room}):
        own = [room[one] for room in rooms if one in room]
        count = sum(objects for _, _, objects in own)
        if not count:
            continue
        scores, right = (np.concatenate([values[place] for values in own]) for place in (0, 1))
        hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
        precision = hits / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        precisions[one] = float((np.diff(hits / count, prepend=0.0) * envelope).sum())
    return precisions


def summary(found: Sequence[Answer], given: Sequence[Answer]) -> dict[str, Any]:
    """Compute average precisions with intervals of 95 %, of rooms drawn again and again, and those of classes."""
    rooms = [outcomes(*both) for both in zip(found, given, strict=True)]
    generator = np.random.default_rng(0)
    draws = generator.integers(len(rooms), size=(RESAMPLES, len(rooms)))
    figures: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        own, name = [room[threshold] for room in rooms], f"ap_{100 * threshold:g}"
        by_class = mean_precision(own)
        again = [np.mean([*mean_precision([own[number] for number in draw]).values()]) for draw in draws]
        low, high = np.percentile(again, (2.5, 97.5))
        figures |= {name: float(np.mean([*by_class.values()])), f"{name}_low": float(low), f"{name}_high": float(high)}
        figures[f"{name}_by_class"] = {str(one): value for one, value in by_class.items()}
    return figures


def scored(found: Mapping[str, Sequence[Answer]], given: Mapping[str, Dataset]) -> dict[str, Any]:
    """Compute the figures of each set of rooms."""
    return {"sets": {name: summary(answers, references(given[name])) for name, answers in found.items()}}


# Runs and tables


def settings_of(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything but the seed that affects the result of an arm."""
    common: dict[str, Any] = {"rooms": ROOMS, "held_out": HELD_OUT, "thresholds": list(THRESHOLDS)}
    if arm == "clusters":
        return common | {"links": list(LINKS), "floor": FLOOR, "fewest": FEWEST}
    own = OWN_ENCODER | {"group_widths": list(OWN_ENCODER["group_widths"])} if arm == "3detr" else {"r": LORA_RANK}
    training = {"steps": options.steps, "batch": BATCH, "learning_rate": LEARNING_RATE, "tokens": TOKENS}
    return common | training | SIZES | own


def all_runs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what has not run yet; seed by seed, so that an interrupted study has complete seeds."""
    runs = []
    for seed in options.seeds:
        for arm in options.arms:
            if arm == "clusters" and seed != options.seeds[0]:
                continue

            def run(arm: str = arm, seed: int = seed) -> dict[str, Any]:
                how: Callable[[], dict[str, Any]] = (
                    (lambda: run_clusters(seed, options))
                    if arm == "clusters"
                    else (lambda: run_detector(arm, seed, options))
                )
                return {"arm": arm, "seed": seed, **how()}

            stored = kept_run(options.output_dir / f"{arm}-{seed}.json", settings_of(arm, options), run)
            told = {name: f"{100 * own['ap_25']:.1f}" for name, own in stored["sets"].items()}
            print(f"{arm}, seed {seed}: AP25 {told}, {stored['cpu_seconds']:.0f} CPU s", flush=True)
            runs.append(stored)
    return runs


def table_rows(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each run and set of test rooms."""
    about = ("arm", "seed", "trained", "total", "steps", "cpu_seconds")
    return [
        {**{name: run[name] for name in about if name in run}, "set": name, **figures}
        for run in runs
        for name, figures in run["sets"].items()
    ]


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Format a table of each set of rooms."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        lines = [
            f"### Unseen rooms, {name}",
            "",
            "| way | seed | trained parameters | AP25 (95 % interval) | AP50 (95 % interval) | CPU s |",
            "|---|---|---|---|---|---|",
        ]
        for arm, title in ARMS.items():
            for row in rows:
                if row["arm"] == arm and row["set"] == name:
                    cells = [title, "–" if arm == "clusters" else row["seed"], f"{row['trained']:,}"]
                    cells += [_with_interval(row, f"ap_{100 * threshold:g}") for threshold in THRESHOLDS]
                    lines.append(f"| {' | '.join(map(str, cells))} | {row['cpu_seconds']:.0f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    return f"{100 * row[name]:.1f} ({100 * row[f'{name}_low']:.1f} to {100 * row[f'{name}_high']:.1f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study and write its table and tables."""
    parser = runs_parser(__doc__ or "", "outputs/detection", ARMS)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of a training")
    options = parser.parse_args(argv)
    use_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*their points are repeated")  # clusters have few points
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows = table_rows(all_runs(options))
    write_results(options.output_dir, "detection", {"machine": machine(), "runs": rows}, report(rows))


if __name__ == "__main__":
    main()
