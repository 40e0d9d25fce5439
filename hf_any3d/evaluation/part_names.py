"""Parts by name: intersection over union of a model that gets the names of an object's parts as texts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_any3d.evaluation.segmentation import counted, counted_labels, part_means, shape_iou

SHAPENETPART_NAMES = {
    "Airplane": ("body", "wing", "tail", "engine or frame"),
    "Bag": ("handle", "body"),
    "Cap": ("crown", "brim"),
    "Car": ("roof", "hood", "wheel", "body"),
    "Chair": ("back", "seat", "leg", "arm"),
    "Earphone": ("earcup", "headband", "data wire"),
    "Guitar": ("headstock", "neck", "body"),
    "Knife": ("blade", "handle"),
    "Lamp": ("base", "lampshade", "fixing bracket", "pole"),
    "Laptop": ("keyboard", "screen"),
    "Motorbike": ("gas tank", "seat", "wheel", "handles or handlebars", "headlight", "engine or frame"),
    "Mug": ("handle", "cup"),
    "Pistol": ("barrel", "handle or grip", "trigger and guard"),
    "Rocket": ("body", "fin", "nose"),
    "Skateboard": ("wheel", "deck", "belt for foot"),
    "Table": ("desktop", "leg or support", "drawer"),
}
"""ShapeNetPart's categories with the words that the released program asks for, in the order of the part numbers."""
FORMS = ("shapenetpart", "faust")
"""Treatment of parts that an object lacks."""


def named_part_iou(predictions: np.ndarray, references: np.ndarray, num_names: int, form: str) -> float:
    """Compute the mean intersection over union of an object's parts.

    Args:
        predictions: `(points,)` numbers of names.
        references: `(points,)` true numbers, -100 for points that do not count.
        num_names: Number of names that the model was given.
        form: "shapenetpart", in which parts that the object lacks are left out, so that predicting one costs only
            through the others; or "faust", in which every name counts, with 1 if it is neither true nor predicted.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}; expected one of {', '.join(map(repr, FORMS))}")
    # Parts that only ignored points have are lacking.
    _, true = counted(predictions, references)
    if not len(true):
        raise ValueError("all points are ignored; expected labels from 0")
    parts = range(num_names) if form == "faust" else [number for number in range(num_names) if (true == number).any()]
    return shape_iou(predictions, references, parts)


def named_part_scores(
    segment: Any,
    rows: Iterable[Mapping[str, Any]],
    names: Mapping[str, Sequence[str]],
    *,
    form: str = "shapenetpart",
    templates: str | Sequence[str] | None = "part_only",
    **arguments: Any,
) -> dict[str, Any]:
    """Evaluate a pipeline on labeled objects, each with the names of its category's parts.

    Args:
        segment: A `ZeroShotPointCloudSegmentationPipeline`.
        rows: Rows with `points`, `labels` `(points,)` that number the names of the category, -100 for none, and
            `category`, a key of `names`.
        names: Names of the parts of each category.
        form: As of `named_part_iou`.
        templates: Texts around a name, as of the pipeline; with "part_plus_cat" and "ensemble", the category is part
            of them.
        **arguments: Further arguments of the pipeline, such as `text_features`, for which `templates` is None.

    Returns:
        `instance_miou`, the mean over objects; `category_miou`, the mean over categories of their means, whereas the
        released program takes means of batches; `category_ious` by category; `accuracy` of points.
    """
    by_category: dict[str, list[float]] = {}
    right = total = 0
    for row in rows:
        category = row["category"]
        # Ready text features need no templates.
        asked = {"templates": templates} if templates is not None else {}
        # Only these texts have the category in them.
        if templates in ("part_plus_cat", "ensemble"):
            asked["category"] = category
        answer = segment({"points": row["points"]}, candidate_labels=names[category], **asked, **arguments)
        references = counted_labels(row["labels"])
        # The accuracy is over the points of all objects, unlike the means of their parts.
        predicted, true = counted(answer["labels"], references)
        right = right + int((predicted == true).sum())
        total = total + len(true)
        iou = named_part_iou(answer["labels"], references, len(names[category]), form)
        by_category.setdefault(category, []).append(iou)
    means = {category: float(np.mean(ious)) for category, ious in sorted(by_category.items())}
    return {**part_means(by_category), "category_ious": means, "accuracy": right / total}


def part_embeddings(
    features: Mapping[str, torch.Tensor], category_parts: Mapping[str, Sequence[int]], num_parts: int
) -> torch.Tensor:
    """Return text embeddings of all part numbers of a dataset.

    Args:
        features: For each named category `(parts, width)` unit vectors of its names.
        category_parts: For each of these categories its part numbers.
        num_parts: Part numbers of all categories.

    Returns:
        `(num_parts, width)` unit vectors; rows without a name have the direction of the mean of the others.
    """
    embeddings = None
    is_named = torch.zeros(num_parts, dtype=torch.bool)
    for category, vectors in features.items():
        parts = list(category_parts[category])
        if len(parts) != len(vectors):
            raise ValueError(f"{category!r} has {len(vectors)} vectors; expected {len(parts)}, one for each part")
        # Width and type are known from the first vectors on.
        if embeddings is None:
            embeddings = vectors.new_zeros(num_parts, vectors.shape[1])
        embeddings[parts] = vectors
        is_named[parts] = True
    assert embeddings is not None, "there are no categories"
    embeddings[~is_named] = nn.functional.normalize(embeddings[is_named].mean(dim=0), dim=0)
    return embeddings
