"""The level of "none of these", views from one side and a wrong axis, with few scans of three sets of shapes.

    python -m studies.none_of_these --kicad FOLDER    # FOLDER has train.parquet and test.parquet

Twelve draws of ten classes of each set, learned as `hf-any3d train` does; results: `results/none_of_these.md`.
Features are stored and not computed again. `studies.none_of_these_scores` compares other scores on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from hf_any3d import (
    PointCloudProcessor,
    PointFeaturesConfig,
    PointFeaturesForPointCloudClassification,
    PointFeaturesModel,
    load_point_dataset,
)
from hf_any3d.cli.predict import UNLIKE_FROM, clearly_less
from hf_any3d.data.axes import turn_up_axis
from hf_any3d.training.few_scans.no_class import draw_things
from hf_any3d.training.few_scans.one_side import one_side
from hf_any3d.training.few_scans.plan import Plan, plan_for
from hf_any3d.training.few_scans.request import FewScansArguments
from hf_any3d.training.few_scans.scans import Examples, Scans
from hf_any3d.training.few_scans.training import fit_few_scans
from studies.few_scans import area
from studies.few_scans_draws import CLASSES_OF_A_DRAW, OTHERS_OF_A_KIND, SEED, SETS, Draw, Shapes, draw, nothing_known
from studies.generated_shapes import Damage, draw_shape, normalized, seen, viewpoint
from studies.generated_shapes.families import OTHERS
from studies.runs import stopwatch

MOST_OF_A_CLASS = 40


def shapes_of(rows: Dataset) -> Shapes:
    """Take at most so many shapes of each class of labeled rows."""
    generator = np.random.default_rng(0)
    every = np.array(rows["label"])
    chosen = np.concatenate(
        [generator.permutation(np.flatnonzero(every == label))[:MOST_OF_A_CLASS] for label in np.unique(every)]
    )
    rows = rows.select(chosen).with_format("numpy")
    labels, numbers = np.unique(rows["label"][:], return_inverse=True)
    names = tuple(rows.features["label"].names[label] for label in labels)
    points = np.stack(rows["points"][:]).astype(np.float32)[:, :, :3]
    return Shapes(points, numbers, np.asarray(rows["group"][:]), names, np.ones(len(numbers), bool))


def embedded() -> Shapes:
    """Load all shapes of the package; its encoder has learned from three quarters of them."""
    splits = load_point_dataset("shapes")
    return shapes_of(concatenate_datasets([splits["train"], splits["test"]]))


def complete() -> Shapes:
    """Generate the shapes of the set "generated" without hiding or cutting any, as happens to half of them there."""
    shapes, damage = SETS["generated"](), Damage(hidden=0.0, cut=0.0)
    count = len(shapes.labels) // len(shapes.names)
    points = [draw_shape(name, SEED, index, damage=damage) for name in shapes.names for index in range(count)]
    return replace(shapes, points=np.stack(points))


def parts(folder: Path) -> Shapes:
    """Load real parts of electronics."""
    files: Any = [str(folder / f"{split}.parquet") for split in ("train", "test")]
    rows = Dataset.from_parquet(files)
    assert isinstance(rows, Dataset)
    return shapes_of(rows)


def viewed(points: np.ndarray, see: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> np.ndarray:
    """Return a view of each cloud, in the unit sphere."""
    views = [normalized(see(cloud, np.random.default_rng(number))) for number, cloud in enumerate(points)]
    return np.stack(views).astype(np.float32)


def by_camera(points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Choose points that a distant camera sees, by other rules than those from which `hf-any3d train` learns."""
    places = points[seen(points, *viewpoint(lambda low, high: generator.uniform(low, high)))]  # pyright: ignore
    return places[generator.choice(len(places), len(points), replace=len(places) < len(points))]


# What is made of the shapes of a set, and the copies over which features are averaged.
FORMS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "copies": (8, lambda points: points),
    "views": (8, lambda points: viewed(points, lambda cloud, r: one_side(cloud, len(cloud), "y", r))),
    "camera": (8, lambda points: viewed(points, by_camera)),
    # What is left to learn from if all scans are of a camera.
    "camera, views": (8, lambda points: viewed(viewed(points, by_camera), lambda c, r: one_side(c, len(c), "y", r))),
    "z up": (8, lambda points: np.stack([turn_up_axis(cloud, "y", "z") for cloud in points])),
    # A file whose z axis points up, if x is taken to.
    "x for z": (8, lambda points: np.stack([turn_up_axis(turn_up_axis(c, "y", "z"), "x", "y") for c in points])),
    # Upright shapes, if another axis is taken to point up.
    "as z up": (8, lambda points: np.stack([turn_up_axis(cloud, "z", "y") for cloud in points])),
    "as x up": (8, lambda points: np.stack([turn_up_axis(cloud, "x", "y") for cloud in points])),
}


FORMS_OF_VIEWS = ("copies", "views", "camera", "camera, views")


def features_of(points: np.ndarray, copies: int) -> np.ndarray:
    """Compute features as `hf-any3d train` does."""
    model = PointFeaturesModel(PointFeaturesConfig(features=Plan().features, copies=copies)).eval()
    with torch.no_grad():
        return np.concatenate([model(points=part).pooler_output for part in torch.from_numpy(points).split(16)])


def stored(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Read an array; compute and store it on the first call."""
    if not path.is_file():
        np.save(path, compute())
    return np.load(path)


def sets_of(options: argparse.Namespace) -> Iterator[tuple[str, Shapes, dict[str, np.ndarray]]]:
    """Yield the sets with the features of their forms."""
    loaders = {"embedded": embedded, "generated": SETS["generated"], "parts": lambda: parts(options.kicad)}
    loaders |= {"complete": complete}
    for name in options.sets:
        shapes = loaders[name]()
        yield (
            name,
            shapes,
            {
                form: stored(
                    options.output_dir / f"{name}-{form.replace(' ', '_')}.npy",
                    lambda make=make, copies=copies, shapes=shapes: features_of(
                        make(shapes.points).astype(np.float32), copies
                    ),
                )
                for form, (copies, make) in FORMS.items()
                if name != "complete" or form in FORMS_OF_VIEWS
            },
        )


SHOTS = (2, 5, 10)
DRAWS = 12


Answers = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def learn(
    shapes: Shapes, division: Draw, rows: np.ndarray, views: np.ndarray | None, bank: np.ndarray, **given: Any
) -> tuple[Any, Answers]:
    """Learn features of all shapes as `hf-any3d train` does.

    Returns the config, and a function that gives the labels, unknown scores and scores of one side of further rows.
    """
    names = [str(number) for number in range(len(division.train))]
    classes = [str(label) for label in range(CLASSES_OF_A_DRAW)]
    scans = Scans(classes, division.labels, shapes.groups[division.train], names, names)
    own = None if views is None else views[division.train]
    examples = Examples(scans, rows[division.train], PointCloudProcessor(), own, **given)
    settings: dict[str, Any] = {"num_labels": CLASSES_OF_A_DRAW, "features": Plan().features}
    model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(**settings))
    head = fit_few_scans(model, examples, bank, plan_for(scans.counts), FewScansArguments()).head

    def asked(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with torch.no_grad():
            standard = torch.from_numpy(head.standardize(rows)).float()
            logits = model.classifier(standard)
            unknown = model.score_unknown(standard, logits)
            side = torch.zeros(len(rows)) if model.side_head is None else model.side_head(standard)[:, 0].sigmoid()
        assert unknown is not None
        return logits.argmax(dim=1).numpy(), unknown.numpy(), side.numpy()

    return model.config, asked


def evaluate(
    shapes: Shapes, features: dict[str, np.ndarray], bank: np.ndarray, nothing: np.ndarray, shots: int, number: int
) -> dict[str, Any]:
    """Learn a draw, and compute what the model says of test shapes and of other ones."""
    division = draw(shapes, shots, number)
    plain = features["copies"]
    with stopwatch() as spent:
        config, asked = learn(shapes, division, plain, features["views"], bank)
    test, others = division.test, division.strangers
    answers, known, side = asked(plain[test])
    right, refused = answers == division.test_labels, known > 0.5
    unknown = asked(plain[others])[1]
    figures = {
        "shots": shots,
        "draw": number,
        "test shapes": len(test),
        "accuracy": right.mean(),
        "accuracy with none": (right & ~refused).mean(),
        "stated": np.nan if config.unknown_share is None else config.unknown_share,
        "known above": refused.mean(),
        "others above": (unknown > 0.5).mean(),
        "area": area(known, unknown),
        "cpu seconds": spent["cpu_seconds"],
    }
    for kind, rows in zip(OTHERS, nothing.reshape(len(OTHERS), OTHERS_OF_A_KIND, -1), strict=True):
        scores = asked(rows)[1]
        figures |= {f"{kind}, area": area(known, scores), f"{kind}, above": (scores > 0.5).mean()}
    figures |= {"whole, one side": (side > 0.5).mean()}
    for name in ("views", "camera"):
        seen_answers, _, seen_side = asked(features[name][test])
        figures |= {
            f"{name}, accuracy": (seen_answers == division.test_labels).mean(),
            f"{name}, one side": (seen_side > 0.5).mean(),
        }
    ways = {
        "whole and views": (plain, features["views"], True),
        "camera alone": (features["camera"], features["camera, views"], False),
        "camera and views": (features["camera"], features["camera, views"], True),
    }
    for way, (rows, views, learns_views) in ways.items():
        _, told = learn(shapes, division, rows, views, bank, learns_views=learns_views)
        for name in ("copies", "views", "camera"):
            labels, scores, _ = told(features[name][test])
            figures |= {f"{way}, {name}": (labels == division.test_labels).mean()}
            figures |= {f"{way}, {name} above": (scores > 0.5).mean()}
    if "z up" not in features:
        return figures
    scores = {name: asked(features[name][test])[1] for name in ("z up", "x for z", "as z up", "as x up")}
    scores["copies"] = known
    turned_right = asked(features["z up"][test])[0] == division.test_labels
    figures |= {"turned, accuracy": turned_right.mean(), "turned, lost": (right & ~turned_right).mean()}
    for name, seen_as, *others in (
        ("turned", "z up", "copies", "x for z"),
        ("upright", "copies", "as z up", "as x up"),
    ):
        best = np.minimum(*(scores[other] for other in others))
        pairs = zip(best.tolist(), scores[seen_as].tolist(), strict=True)
        tried = scores[seen_as] > UNLIKE_FROM
        hinted = tried & np.array([clearly_less(one, other) for one, other in pairs])
        figures |= {f"{name}, tried": tried.mean(), f"{name}, hint": hinted.mean()}
        if name == "turned":
            figures["turned, right hint"] = (hinted & (scores["copies"] <= best)).mean()
            figures["turned, hint where lost"] = hinted[right & ~turned_right].mean()
    return figures


LEVELS = {
    "scans a class": "shots",
    "stated": "stated",
    "known without a label": "known above",
    "others without a label": "others above",
    "AUROC": "area",
    "accuracy": "accuracy",
    "accuracy, none counts as wrong": "accuracy with none",
}
HINTS = {
    "scans a class": "shots",
    "whole: accuracy": "accuracy",
    "whole: hint": "whole, one side",
    "views: accuracy": "views, accuracy",
    "views: hint": "views, one side",
    "camera: accuracy": "camera, accuracy",
    "camera: hint": "camera, one side",
}
AXES = {
    "scans a class": "shots",
    "upright: accuracy": "accuracy",
    "upright: tried": "upright, tried",
    "upright: hint": "upright, hint",
    "on its side: accuracy": "turned, accuracy",
    "on its side: hint": "turned, hint",
    "right hint": "turned, right hint",
    "lost": "turned, lost",
    "lost: hint": "turned, hint where lost",
}
NOTHING = {
    "scans a class": "shots",
    **{f"{kind}: AUROC": f"{kind}, area" for kind in OTHERS},
    **{f"{kind}: no label": f"{kind}, above" for kind in OTHERS},
}
LEARNED_VIEWS = {
    "scans a class": "shots",
    **{
        f"{way}: {name}": f"{way}, {form}"
        for way in ("whole and views", "camera alone", "camera and views")
        for name, form in (("whole", "copies"), ("views", "views"), ("camera", "camera"))
    },
}
REFUSED_VIEWS = {
    "scans a class": "shots",
    **{
        f"{way}: {name}": f"{way}, {form} above"
        for way in ("whole and views", "camera and views")
        for name, form in (("whole", "copies"), ("views", "views"), ("camera", "camera"))
    },
}


def table(columns: dict[str, str], runs: list[dict[str, Any]]) -> str:
    """Format means over draws in percent, AUROC as it is."""
    lines = ["| set | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(run["set"] for run in runs):
        for shots in SHOTS:
            own = [run for run in runs if run["set"] == name and run["shots"] == shots]
            if any(key not in own[0] for key in columns.values()):
                continue
            means = {key: float(np.mean([run[key] for run in own if key in run])) for key in columns.values()}
            cells = [
                f"{shots}" if k == "shots" else f"{means[k]:.2f}" if k.endswith("area") else f"{100 * means[k]:.1f}"
                for k in means
            ]
            lines.append(f"| {name} | " + " | ".join(cell.replace("nan", "–") for cell in cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Compute features once, evaluate all draws, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kicad", type=Path, required=True, help="folder of the parts")
    parser.add_argument("--sets", nargs="+", default=["embedded", "generated", "parts", "complete"])
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/none_of_these"))
    options = parser.parse_args(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    bank = stored(options.output_dir / "things.npy", lambda: features_of(draw_things(), 1))
    nothing = stored(options.output_dir / "nothing.npy", lambda: features_of(nothing_known(), 8))
    runs = []
    for name, shapes, features in sets_of(options):
        for shots in SHOTS:
            runs += [{"set": name, **evaluate(shapes, features, bank, nothing, shots, n)} for n in range(DRAWS)]
    tables = (LEVELS, NOTHING, HINTS, LEARNED_VIEWS, REFUSED_VIEWS, AXES)
    print(*(table(columns, runs) for columns in tables), sep="\n\n")
    largest = {
        name: max(run["known above"] for run in runs if run["set"] == name and run["shots"] > min(SHOTS))
        for name in options.sets
    }
    print("largest share of known shapes without a label in a draw:", largest)


if __name__ == "__main__":
    main()
