"""Check published checkpoints without stored truth: whether their answers mean anything.

A checkpoint whose weights were read in a wrong order opens without an error and answers at random. So each is asked
about clouds that come with the package, and has to be right far more often than by chance.
"""

from __future__ import annotations

import gc
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from hf_any3d.data.catalog import load_point_dataset, up_axis_of
from hf_any3d.data.files import example_file
from hf_any3d.data.point_arrays import rotation_matrix
from hf_any3d.hub.published_table import find_published
from hf_any3d.modeling.layers.boxes import box_iou
from hf_any3d.published import open_published
from hf_any3d.registry import task_of_class
from hf_any3d.utils.messages import cut
from hf_any3d.version import __version__

_PACKAGES = ("torch", "transformers", "peft", "safetensors")
EXAMPLES = {
    "chair": ("chair",),
    "lamp": ("lamp",),
    "shelves": ("shelves", "bookshelf", "shelf", "storage", "cabinet", "bookcase"),
    "sofa": ("sofa", "couch"),
    "stool": ("stool", "chair"),
    "table": ("table", "desk"),
}
"""Example file -> labels that are right for it."""
# Class of packaged shapes -> labels that are right for it, where there are others than its name.
_CALLED = {
    "chair": ("chair", "stool"),
    "plant": ("plant", "flower_pot"),
    "storage": ("storage", "bookshelf", "dresser", "night_stand", "tv_stand", "wardrobe"),
    "table": ("table", "desk"),
    "vehicle": ("vehicle", "airplane", "car"),
    "vessel": ("vessel", "bottle", "bowl", "cup", "vase"),
}
# A result by chance is rarer than this, and at least twice as good as chance.
_SIGNIFICANCE = 1e-3
# Of balanced accuracies, whose points are not independent: this much above chance.
_MARGIN = 0.2
# The overlap of a box that is found, and the share of objects that have to be
_IOU, _RECALL = 0.25, 0.25
# Benchmarks of streets have no classes of rooms.
_INDOORS = ("floor", "chair", "table", "sofa", "bed")
_SURFACES = ("floor", "wall", "ceiling")
# Points within so many meters of a surface are on it.
_NEAR = 0.03


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        passed: Whether it is as expected; None if it could not be judged.
        seen: What was found, and what is expected.
    """

    name: str
    passed: bool | None
    seen: str


def check_published(name: str, *, accept_license: bool = False, clouds: int = 104) -> dict[str, Any]:
    """Fetch, convert and open a published checkpoint, and judge it.

    Args:
        name: Name of the repository, with `:size` where there are several.
        accept_license: Accept a license that forbids commercial use, as `open_published` does.
        clouds: Most test shapes to ask about.

    Returns:
        A record of plain values: `passed`, `checks`, the class, file, revision and checksum of the weights, versions,
        the date, and seconds for opening and for judging.
    """
    start = time.perf_counter()
    model = open_published(name, accept_license=accept_license)
    opened = time.perf_counter()
    try:
        checks = list(_judge(name, model, clouds))
    # A checkpoint that opens but cannot answer has failed.
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        checks = [Check("answers", False, f"{type(error).__name__}: {cut(str(error).splitlines()[0], 200)}")]
    # Where the weights came from, as it was noted when they were opened
    source = dict(model.config.published)
    record = {
        "passed": all(check.passed is not False for check in checks),
        "checks": [asdict(check) for check in checks],
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{key: source.get(key) for key in ("file", "revision", "sha256", "weights_license")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"hf-any3d": __version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "seconds": {"open": round(opened - start, 1), "judge": round(time.perf_counter() - opened, 1)},
    }
    # Some have gigabytes, and the next one is opened at once.
    del model
    gc.collect()
    return record


def _judge(name: str, model: Any, clouds: int) -> Iterator[Check]:
    repository, _, published = find_published(name)
    task = task_of_class(type(model).__name__)
    if task == "zero-shot-point-cloud-classification" and published.text_tower is None:
        yield Check("zero-shot", None, f"transformers has no class for its texts, {published.texts}")
        yield _features(name, model, clouds)
    elif task == "zero-shot-point-cloud-classification":
        classify = _pipeline(task, name)
        yield _zero_shot_shapes(classify, clouds)
        yield _examples(lambda file: classify(file, candidate_labels=list(EXAMPLES), up_axis="y", top_k=1))
    elif task == "point-cloud-classification":
        yield _named_shapes(_pipeline(task, name), model, clouds)
    elif task == "zero-shot-point-cloud-segmentation":
        yield _parts(name)
    elif task == "point-cloud-segmentation":
        yield _room(name, model)
    elif task == "point-cloud-object-detection":
        yield _boxes(name)
    elif task == "point-cloud-text-to-text":
        yield _chat(name)
    else:
        yield _features(name, model, clouds)


def _pipeline(task: Any, name: Any, **arguments: Any) -> Any:
    from transformers import pipeline

    return pipeline(task, model=name, **arguments)


def _shapes(split: str, most: int) -> tuple[list[np.ndarray], list[str]]:
    """Return packaged shapes, equally many of each class, and their classes."""
    rows: Any = load_point_dataset("shapes", split=split)
    names = rows.features["label"].names
    labels = np.asarray(rows["label"])
    each = max(1, most // len(names))
    chosen = [int(row) for label in range(len(names)) for row in np.flatnonzero(labels == label)[:each]]
    return [np.asarray(rows[row]["points"])[:, :3] for row in chosen], [names[labels[row]] for row in chosen]


def _zero_shot_shapes(classify: Any, clouds: int) -> Check:
    from scipy.stats import binomtest

    points, labels = _shapes("test", clouds)
    names = sorted(set(labels))
    total = len(labels)
    answers = classify(points, candidate_labels=names, up_axis=up_axis_of("shapes") or "y", top_k=1)
    right = sum(answer[0]["label"] == label for answer, label in zip(answers, labels, strict=True))
    chance = 1 / len(names)
    rare = binomtest(right, total, chance, alternative="greater").pvalue < _SIGNIFICANCE
    passed = bool(rare and right / total >= 2 * chance)
    seen = f"{right} of {total} right; chance is {chance:.1%}"
    return Check("zero-shot accuracy on packaged test shapes", passed, seen)


def _examples(answer: Callable[[str], Any]) -> Check:
    """Ask for the names of the example files."""
    said = {stem: str(answer(str(example_file(f"{stem}.ply")))[0]["label"]) for stem in EXAMPLES}
    right = [stem for stem, label in said.items() if label.lower() in EXAMPLES[stem]]
    # One answer for all of them, such as chair, is right for two.
    passed = len(right) >= 4
    wrong = ", ".join(f"{stem}: {label}" for stem, label in said.items() if stem not in right)
    detail = f"{len(right)} of 6 right, at least 4 expected; {wrong}"
    return Check("names of the example files", passed, cut(detail, 200))


def _named_shapes(classify: Any, model: Any, clouds: int) -> Check:
    """Ask for the names of packaged shapes, facing four sides, since many models know things from one side only."""
    from scipy.stats import binomtest

    names = {str(label).lower() for label in model.config.id2label.values()}
    points, labels = _shapes("test", clouds)
    # Labels of the model that are right for each shape; without any, the shape is not asked about.
    right_names = [names.intersection(_CALLED.get(label, (label,))) for label in labels]
    asked = [number for number, right in enumerate(right_names) if right]
    what = "names of packaged test shapes"
    if len({labels[number] for number in asked}) < 3:
        return Check(what, None, "its classes are not those of the packaged shapes")
    counts = []
    shares = []
    for turn in np.linspace(0, 2 * np.pi, 4, endpoint=False):
        turned = [points[number] @ rotation_matrix(1, turn) for number in asked]
        answers = classify(turned, up_axis=up_axis_of("shapes") or "y", top_k=1)
        said = [str(answer[0]["label"]).lower() for answer in answers]
        counts.append(sum(label in right_names[number] for label, number in zip(said, asked, strict=True)))
        # How often the answers would be right for any other shape.
        shares.append(np.mean([label in right_names[number] for label in said for number in asked]))
    best = int(np.argmax(counts))
    # The best of four turns counts, so that chance has four tries.
    rare = binomtest(counts[best], len(asked), float(shares[best]), alternative="greater").pvalue < _SIGNIFICANCE / 4
    seen = f"{', '.join(map(str, counts))} of {len(asked)} right after turns by 0, 90, 180 and 270 degrees"
    passed = bool(rare and counts[best] / len(asked) >= 2 * shares[best])
    return Check(what, passed, f"{seen}; with answers of other shapes {shares[best]:.1%}")


def _features(name: str, model: Any, clouds: int) -> Check:
    """Compare the nearest class means of packaged shapes by the model's features, and by those of random weights."""
    from scipy.stats import binomtest
    from transformers import AutoProcessor

    # Random weights to compare with, without a change of the caller's random numbers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = type(model)(model.config).eval()
    processor = AutoProcessor.from_pretrained(name)
    up_axis = up_axis_of("shapes") or "y"
    learned, labels = _shapes("train", clouds)
    asked, truth = _shapes("test", clouds)
    # Packaged shapes have no normals, so these are found by the neighbors of points.
    if getattr(processor, "needs_normals", False):
        learned = [_colored(points) for points in learned]
        asked = [_colored(points) for points in asked]
    names = sorted(set(labels))
    right = []
    for encoder in (model, control):
        extract = _pipeline("point-cloud-feature-extraction", encoder, feature_extractor=processor)

        def pooled(shapes: Any, extract: Any = extract) -> np.ndarray:  # (clouds, channels)
            return np.stack([np.asarray(answer["pooled"], np.float64) for answer in extract(shapes, up_axis=up_axis)])

        features = pooled(learned)
        other = pooled(asked)
        means = np.stack([features[np.asarray(labels) == label].mean(axis=0) for label in names])
        # In units of each channel's spread, as the scales of channels differ.
        difference = (other[:, None] - means) / (features.std(axis=0) + 1e-9)
        distance = np.linalg.norm(difference, axis=-1)  # (clouds, classes)
        right.append(np.asarray(names)[distance.argmin(axis=1)] == np.asarray(truth))
    # Random weights tell shapes apart, too, so both are asked about the same ones.
    alone = [int((mine & ~others).sum()) for mine, others in (right, right[::-1])]
    # Shapes that only one of them gets right would be shared out evenly by chance.
    rare = sum(alone) > 0 and binomtest(alone[0], sum(alone), 0.5, alternative="greater").pvalue < 0.01
    shares = [float(mine.mean()) for mine in right]
    seen = f"class means are right for {shares[0]:.1%} of {len(truth)} shapes, with random weights for {shares[1]:.1%}"
    passed = bool(rare and shares[0] >= shares[1] + 0.1)
    return Check("features of packaged shapes", passed, f"{seen}; 10 points more are expected, and not by chance")


def _room(name: str, model: Any) -> Check:
    what = "labels of a packaged room"
    names = {str(label).lower() for label in model.config.id2label.values()}
    if names.issuperset(_SURFACES):
        return _room_with_walls(name, model)
    shared = [label for label in _INDOORS if label in names]
    if len(shared) < 3:
        return Check(what, None, "its classes are not those of rooms, and no other scene comes with the package")
    rows: Any = load_point_dataset("rooms", split="test", train_rooms=1, validation_rooms=1, test_rooms=4)
    true_names = rows.features["labels"].feature.names
    segment = _pipeline("point-cloud-segmentation", name)
    answers = np.zeros(0, str)
    truth = np.zeros(0, str)
    for row in rows:
        answer = segment(_colored(np.asarray(row["points"])), up_axis="y")
        answers = np.append(answers, [str(model.config.id2label[int(label)]).lower() for label in answer["labels"]])
        truth = np.append(truth, [true_names[label] for label in np.asarray(row["labels"])])
    shares = [float((answers[truth == label] == label).mean()) for label in shared if (truth == label).any()]
    mean = float(np.mean(shares))
    chance = 1 / len(shared)
    passed = mean >= max(2 * chance, chance + _MARGIN)
    return Check(what, passed, f"mean accuracy of {len(shares)} classes {mean:.1%}; chance is {chance:.1%}")


def _room_with_walls(name: str, model: Any) -> Check:
    """Judge the labels of a generated room's floor, walls and ceiling, and report those of its gray furniture."""
    rows: Any = load_point_dataset(
        "rooms_with_layouts", split="test", train_rooms=1, validation_rooms=1, test_rooms=1, num_points=32_768
    )
    row = rows[0]
    names = rows.features["box_labels"].feature.names
    points = np.asarray(row["points"], np.float32)
    low = points.min(axis=0)
    high = points.max(axis=0)
    # The generated room has none.
    ceiling = np.random.default_rng(0).uniform(low, high, (8192, 3)).astype(np.float32)
    ceiling[:, 2] = high[2]
    points = np.concatenate([points, ceiling])
    segment = _pipeline("point-cloud-segmentation", name)
    labels = segment(_colored(points), up_axis="z")["labels"]
    answers = np.array([str(model.config.id2label[int(label)]).lower() for label in labels])
    truth = np.full(len(points), "", "<U16")
    for box, label in zip(np.asarray(row["boxes"]), row["box_labels"], strict=True):
        inside = (points - box[:3]) @ rotation_matrix(2, box[6])  # turned back: rows, not columns
        truth[(np.abs(inside) <= box[3:6] / 2).all(axis=1)] = names[label]
    # Distance from the nearest wall: the walls are the sides of the room.
    beside = np.minimum(points - low, high - points)[:, :2].min(axis=1)
    truth[beside < _NEAR] = "wall"
    truth[points[:, 2] - low[2] < _NEAR] = "floor"
    truth[-len(ceiling) :] = "ceiling"
    shares = {label: float((answers[truth == label] == label).mean()) for label in _SURFACES}
    things = set(truth).intersection(names, map(str.lower, model.config.id2label.values()))
    seen = ", ".join(
        f"{label} {(answers[truth == label] == label).mean():.0%}" for label in (*shares, *sorted(things))
    )
    return Check("labels of a packaged room", float(np.mean(list(shares.values()))) >= 2 / 3, f"right: {seen}")


def _colored(points: np.ndarray) -> dict[str, np.ndarray]:
    """Return a cloud in gray with normals: the directions in which a point's neighbors spread least."""
    from scipy.spatial import KDTree

    # Packaged clouds have no normals of their own.
    near = points[KDTree(points).query(points, 16)[1]]  # (points, neighbors, 3)
    spread = near - near.mean(axis=1, keepdims=True)
    normals = np.linalg.svd(spread, full_matrices=False)[2][:, -1].astype(np.float32)  # (points, 3)
    return {"points": points, "colors": np.full(points.shape, 0.5), "normals": normals}


def _parts(name: str) -> Check:
    # Objects of several categories, each of which is asked for its own parts
    rows: Any = load_point_dataset("parts", split="test", train_objects=1, validation_objects=0, test_objects=12)
    names = rows.features["labels"].feature.names
    categories = rows.features["label"].names
    segment = _pipeline("zero-shot-point-cloud-segmentation", name)
    # These points all belong to a part.
    choice = {"none_label": False} if hasattr(segment.model.config, "none_label") else {}
    shares = []
    chances = []
    for row in rows:
        points = np.asarray(row["points"])
        cloud = _colored(points)
        truth = np.asarray(row["labels"])
        category = categories[row["label"]]
        parts = sorted(set(truth.tolist()))
        labels = [names[part].removeprefix(f"{category} ") for part in parts]
        answer = segment(cloud, candidate_labels=labels, category=category, up_axis="y", **choice)
        answers = np.asarray(parts)[np.asarray(answer["labels"])]
        shares += [float((answers[truth == part] == part).mean()) for part in parts]
        chances.append(1 / len(parts))
    mean = float(np.mean(shares))
    chance = float(np.mean(chances))
    seen = f"mean accuracy of {len(shares)} parts {mean:.1%}; chance is {chance:.1%}"
    return Check("parts of packaged objects by name", mean >= max(1.5 * chance, chance + _MARGIN), seen)


def _chat(name: str) -> Check:
    chat = _pipeline("point-cloud-text-to-text", name)
    words = []
    right = 0
    for stem in ("chair", "lamp"):
        answer = chat(str(example_file(f"{stem}.ply")), text="What is this?", max_new_tokens=48, do_sample=False)
        text = answer[0]["generated_text"].lower()
        right += stem in text or (stem == "chair" and "seat" in text)
        words.append(f"{stem}: {cut(' '.join(text.split()), 60)!r}")
    return Check("words of a chat about the chair and the lamp", right == 2, "; ".join(words))


def _boxes(name: str) -> Check:
    rows: Any = load_point_dataset(
        "rooms_with_layouts", split="test", train_rooms=1, validation_rooms=1, test_rooms=1, num_points=32_768
    )
    row = rows[0]
    points = np.asarray(row["points"], np.float32)
    true = torch.as_tensor(np.asarray(row["boxes"], np.float32))
    detect = _pipeline("point-cloud-object-detection", name)
    cloud = {"points": points, "colors": np.full(points.shape, 0.5, np.float32)}
    answers = detect(cloud, up_axis="z", max_new_tokens=1024, do_sample=False)
    boxes = [[*answer["box"]["center"], *answer["box"]["size"], answer["box"]["heading"]] for answer in answers]
    hit = 0
    if boxes:
        overlaps = box_iou(true[:, None], torch.tensor(boxes, dtype=torch.float32)[None])  # (true, found)
        hit = int((overlaps.max(dim=1).values >= _IOU).sum())
    seen = f"{hit} of {len(true)} objects found among {len(boxes)} boxes, {_RECALL:.0%} expected"
    return Check("boxes of a packaged room", hit >= _RECALL * len(true), seen)
