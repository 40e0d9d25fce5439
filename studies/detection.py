"""Boxes around objects of generated rooms: 3DETR, a pretrained encoder under its decoder, and clusters with labels.

    python -m studies.detection                              # everything that has not run yet
    python -m studies.detection --arms clusters --seeds 0    # some of it

The plan, chosen before the first result, and the results: `results/detection.md`. Runs are stored and not repeated; a
training that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import functools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftConfig, get_peft_model
from scipy import stats
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import nn
from transformers import PreTrainedModel, set_seed

from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    ActModel,
    Any2PointModel,
    AutoModelForPointCloudObjectDetection,
    GuidedAdapterConfig,
    PointCloudProcessor,
    encoder_linear_pattern,
    load_point_dataset,
)
from hf_any3d.data.axes import turn_up_axis
from hf_any3d.data.boxes import build_changes
from hf_any3d.evaluation.detection import score_detections
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.pipelines import default_model
from hf_any3d.training.detection import DetectionTrainer, DetectionTrainingArguments, SceneRows, collate_scenes
from hf_any3d.training.program import EpochCallback
from studies.earlier_recipe import ENCODER
from studies.runs import kept_run, machine, runs_parser, stopwatch, use_threads, write_results

ROOMS = {
    **{"train_rooms": 1088, "validation_rooms": 32, "test_rooms": 96, "num_points": 2048, "num_objects": 6},
    "headings": False,
}
HELD_OUT = 64
"""Rooms of training shapes that no model is trained on."""
STEPS, BATCH, LEARNING_RATE = 1000, 8, 1e-3
LONGER = 3
"""Times as many steps, of the longer training."""
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
WORD_LAYERS = 2
"""Layers of the encoder of words, as in the recipe for rooms."""
THRESHOLDS = (0.25, 0.5)
RESAMPLES = 1000
FLOOR = 0.03
"""Height up to which points are the floor, in meters."""
LINKS = {"clusters": (0.15, 0.2, 0.25, 0.3, 0.4), "clusters_touching": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)}
"""Arm: distances at which points of a cluster are linked, to choose from on validation rooms."""
FEWEST = 8
"""Points of a cluster."""
ARMS = {
    "clusters": "connected components, packaged classifier",
    "clusters_touching": "the same, link chosen on rooms whose objects touch",
    "3detr": "3DETR, all trained",
    "3detr_longer": f"3DETR, all trained, {LONGER} times as long",
    "pretrained": "packaged ACT encoder, frozen, with LoRA, under the decoder",
    "random": "the same with random weights",
    "any2point": "Any2Point, frozen, with guided adapters, under the decoder",
    "any2point_random": "the same around random layers",
}
ONCE = (*LINKS, "3detr_longer")
"""Arms with one run."""
SETS = ("seen shapes", "unseen shapes", "touching")

Answer = Mapping[str, np.ndarray]


@functools.cache
def interval(values: Sequence[float]) -> float:
    """Return the half width of the 95 % interval of a mean over draws; NaN of one draw."""
    count = len(values)
    return (
        float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    )


def load_rooms() -> tuple[DatasetDict, dict[str, Dataset]]:
    """Compose the rooms: those to train and to choose on, and those to test with."""
    splits = load_point_dataset("rooms_with_boxes", **ROOMS)
    rows, count = splits["train"], ROOMS["train_rooms"] - HELD_OUT
    close = load_point_dataset("rooms_with_boxes", **(ROOMS | {"train_rooms": 0, "touching": True}))
    tests = {"seen shapes": rows.select(range(count, len(rows))), "unseen shapes": splits["test"]}
    chosen_on = {"validation": splits["validation"], "validation_touching": close["validation"]}
    return DatasetDict(train=rows.select(range(count)), **chosen_on), tests | {"touching": close["test"]}


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


def choose_link(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Choose the link on validation rooms; there is nothing to train."""
    splits, _ = load_rooms()
    rows, names = splits[arm.replace("clusters", "validation")], class_names(splits["train"])
    scores = {}
    with stopwatch() as spent:
        for link in LINKS[arm]:
            scores[link] = summary([*answers_of_clusters(rows, names, link)], references(rows))["ap_25"]
            print(f"link {link}: AP25 {100 * scores[link]:.1f}", flush=True)
    total = count_parameters(ActForPointCloudClassification.from_pretrained(default_model()))[1]
    return {"link": max(scores, key=scores.__getitem__), "trained": 0, "total": total, **spent}


def answers_of_clusters(rows: Dataset, names: Sequence[str], link: float) -> Iterator[Answer]:
    """Answer for rooms with clusters."""
    detector = ClusterDetector(names, link)
    return (detector(np.asarray(points)) for points in rows["points"])


# Detectors


def build(arm: str, seed: int, names: Sequence[str], folder: Path) -> nn.Module:
    """Build the detector of an arm, untrained."""
    set_seed(seed)
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    if arm.startswith("3detr"):
        return Detr3DForPointCloudObjectDetection(Detr3DConfig(**SIZES, **OWN_ENCODER, **labels))
    place = folder / f"encoder-{arm}-{seed}"
    if not place.is_dir():
        _encoder(arm).save_pretrained(place)
    model = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(
        str(place), point_encoder_up_axis="y", **SIZES, **labels
    )
    adapter: PeftConfig = GuidedAdapterConfig.light()
    if not arm.startswith("any2point"):
        adapter = LoraConfig(r=LORA_RANK, target_modules=encoder_linear_pattern(model))
    return get_peft_model(model, adapter)


def _encoder(arm: str) -> PreTrainedModel:
    if arm.startswith("any2point"):
        weights = "random" if arm.endswith("random") else "pretrained"
        return Any2PointModel.from_encoder_pretrained(
            ENCODER, num_layers=WORD_LAYERS, num_tokens=TOKENS, encoder_weights=weights
        )
    encoder = ActForPointCloudClassification.from_pretrained(default_model()).act
    if arm == "random":
        encoder = ActModel(ActConfig.from_pretrained(default_model()))
    # Patches of a room that are about as large, in meters, as those of an object in the unit sphere.
    encoder.config.num_groups = TOKENS
    return encoder


def steps_of(arm: str, options: argparse.Namespace) -> int:
    """Return the number of steps of an arm's training."""
    return options.steps * (LONGER if arm == "3detr_longer" else 1)


def train(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train the detector of an arm; its last checkpoint is the detector."""
    splits, _ = load_rooms()
    model = build(arm, seed, class_names(splits["train"]), options.output_dir)
    trained, total = count_parameters(model)
    place = options.output_dir / "trainer" / f"{arm}-{seed}"
    arguments = DetectionTrainingArguments(
        str(place),
        seed=seed,
        max_steps=steps_of(arm, options),
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
    return {"trained": trained, "total": total, "steps": steps_of(arm, options), **spent}


@torch.no_grad()
def answers_of_detector(rows: Dataset, place: Path) -> Iterator[Answer]:
    """Answer for rooms with the detector in a directory, each box once for every class."""
    model = AutoModelForPointCloudObjectDetection.from_pretrained(place).eval()
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


def without_classes(answer: Answer) -> Answer:
    """Return each box once, of one class for all, with the sum of its scores."""
    if "scores" not in answer:
        return {"boxes": answer["boxes"], "labels": np.zeros(len(answer["labels"]), int)}
    boxes, number = np.unique(answer["boxes"], axis=0, return_inverse=True)
    scores = np.bincount(number.ravel(), weights=answer["scores"], minlength=len(boxes))
    return {"boxes": boxes.reshape(-1, 7), "labels": np.zeros(len(boxes), int), "scores": scores}


def judge(arm: str, seed: int, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compute the figures of an arm on a set of rooms, with classes and, to see what places alone are worth, without.

    Args:
        arm: Name of the arm, whose run is stored.
        seed: Its seed.
        name: Name of the set.
        options: Of the study.
    """
    splits, tests = load_rooms()
    if arm in LINKS:
        link = json.loads((options.output_dir / f"{arm}-{seed}.json").read_text(encoding="utf-8"))["link"]
        found = [*answers_of_clusters(tests[name], class_names(splits["train"]), link)]
    else:
        place = options.output_dir / "trainer" / f"{arm}-{seed}" / f"checkpoint-{steps_of(arm, options)}"
        found = [*answers_of_detector(tests[name], place)]
    given = references(tests[name])
    places = summary([*map(without_classes, found)], [*map(without_classes, given)])
    return summary(found, given) | {f"places_{key}": value for key, value in places.items() if "class" not in key}


# Runs and tables


def settings_of(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything but the seed that affects the training of an arm."""
    common: dict[str, Any] = {"rooms": ROOMS, "held_out": HELD_OUT, "thresholds": list(THRESHOLDS)}
    if arm in LINKS:
        return common | {"links": list(LINKS[arm]), "floor": FLOOR, "fewest": FEWEST}
    own: dict[str, Any] = {"r": LORA_RANK}
    if arm.startswith("3detr"):
        own = OWN_ENCODER | {"group_widths": list(OWN_ENCODER["group_widths"])}
    elif arm.startswith("any2point"):
        own = {"encoder": ENCODER, "layers": WORD_LAYERS}
    training = {"steps": steps_of(arm, options), "batch": BATCH, "learning_rate": LEARNING_RATE, "tokens": TOKENS}
    return common | training | SIZES | own


def all_runs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what has not run yet; seed by seed, so that an interrupted study has complete seeds."""
    runs = []
    for seed in options.seeds:
        for arm in options.arms:
            if arm in ONCE and seed != 0:
                continue
            path, settings = options.output_dir / f"{arm}-{seed}.json", settings_of(arm, options)
            how = choose_link if arm in LINKS else train
            run = functools.partial(how, arm, seed, options)
            stored = kept_run(path, settings, run) | {"arm": arm, "seed": seed, "sets": {}}
            for name in SETS:
                path = options.output_dir / f"{arm}-{seed}-{name.partition(' ')[0]}.json"
                figures = functools.partial(judge, arm, seed, name, options)
                stored["sets"][name] = kept_run(path, {**settings, "resamples": RESAMPLES}, figures)
            told = {name: f"{100 * own['ap_25']:.1f}" for name, own in stored["sets"].items()}
            print(f"{arm}, seed {seed}: AP25 {told}, {stored['cpu_seconds']:.0f} CPU s", flush=True)
            runs.append(stored)
    return runs


def table_rows(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each run and set of test rooms."""
    about = ("arm", "seed", "trained", "total", "steps", "link", "cpu_seconds")
    return [
        {
            **{name: run[name] for name in about if name in run},
            "set": name,
            **{key: value for key, value in figures.items() if key.startswith(("ap_", "places_"))},
        }
        for run in runs
        for name, figures in run["sets"].items()
    ]


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Format a table of each set of rooms, with means over seeds."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        lines = [
            f"### Unseen rooms, {name}",
            "",
            "| way | trained parameters | AP25 of seeds | AP25 | AP50 | AP25 without classes | CPU s |",
            "|---|---|---|---|---|---|---|",
        ]
        for arm, title in ARMS.items():
            own = [row for row in rows if row["arm"] == arm and row["set"] == name]
            if not own:
                continue
            cells = [title, f"{own[0]['trained']:,}", ", ".join(f"{100 * row['ap_25']:.1f}" for row in own)]
            cells += [with_interval(own, key) for key in ("ap_25", "ap_50", "places_ap_25")]
            lines.append(f"| {' | '.join(cells)} | {np.mean([row['cpu_seconds'] for row in own]):.0f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def with_interval(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Format a mean over seeds with its 95 % interval; that of a single run is over rooms."""
    values = [100 * row[key] for row in rows]
    if len(values) > 1:
        return f"{np.mean(values):.1f} ± {interval(values):.1f}"
    return f"{values[0]:.1f} ({100 * rows[0][f'{key}_low']:.1f} to {100 * rows[0][f'{key}_high']:.1f})"


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
