"""Cut the embedded shapes from the full set of Sweet Home 3D models and write their data card.

The full set is a folder with train.parquet and test.parquet: 2048 points per shape in random order, with normals,
colors, and the title, collection, author and license of every shape.

    python examples/make_cut.py --source FULL_SET
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import Array2D, Dataset, DatasetDict, load_dataset

from hf_any3d.utils.atomic_files import atomic_write, write_text

NUM_POINTS = 1024
LEFT_OUT_SOURCE = "eTeks"  # the one collection under the GPL; all others are CC0 or CC-BY
ARRAY_TYPES = {"points": "float32", "normals": "float32", "colors": "uint8"}
KEPT = (*ARRAY_TYPES, "label", "name", "title", "source", "creator", "license", "group")
LICENSE_LINKS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "https://creativecommons.org/licenses/by/3.0/us/",
}


def cut_split(dataset: Dataset) -> Dataset:
    """Keep the shapes under Creative Commons licenses and the first `NUM_POINTS` points of each."""
    dataset = dataset.filter(lambda source: source != LEFT_OUT_SOURCE, input_columns="source")
    dataset = dataset.remove_columns([name for name in dataset.column_names if name not in KEPT])
    features = dataset.features.copy()
    features.update({name: Array2D((NUM_POINTS, 3), dtype) for name, dtype in ARRAY_TYPES.items()})

    def first_points(row: dict) -> dict:
        return {name: np.asarray(row[name])[:NUM_POINTS].astype(dtype) for name, dtype in ARRAY_TYPES.items()}

    return dataset.with_format("numpy").map(first_points, features=features).with_format(None)


def class_table(splits: DatasetDict) -> str:
    """Format the number of shapes of every class and split as a Markdown table."""
    names = splits["train"].features["label"].names
    counts = {split: Counter(rows["label"]) for split, rows in splits.items()}
    lines = ["| class | train | test |", "|---|---|---|"]
    lines += [f"| {name} | {counts['train'][i]} | {counts['test'][i]} |" for i, name in enumerate(names)]
    return "\n".join([*lines, f"| **all** | {len(splits['train'])} | {len(splits['test'])} |"])


def license_table(splits: DatasetDict) -> str:
    """Format shapes, license and authors of every collection as a Markdown table."""
    rows = [row for split in splits.values() for row in split.select_columns(["source", "creator", "license"])]
    lines = ["| collection | shapes | license | authors |", "|---|---|---|---|"]
    for source in sorted({row["source"] for row in rows}):
        mine = [row for row in rows if row["source"] == source]
        (license_name,) = {row["license"] for row in mine}
        authors = "; ".join(sorted({row["creator"] for row in mine}, key=str.lower))
        lines.append(f"| {source} | {len(mine)} | [{license_name}]({LICENSE_LINKS[license_name]}) | {authors} |")
    return "\n".join(lines)


def write_card(splits: DatasetDict, folder: Path) -> None:
    """Fill the template of the data card with figures of the cut."""
    largest = max(Counter(splits["test"]["label"]).values()) / len(splits["test"])
    groups = len({group for rows in splits.values() for group in rows["group"]})
    points = np.concatenate(
        [rows.with_format("numpy")["points"][:] for rows in splits.values()]
    )  # (shapes, points, 3)
    card = (Path(__file__).parent / "data" / "card_template.md").read_text(encoding="utf-8")
    card = card.format(
        total=sum(len(rows) for rows in splits.values()),
        train=len(splits["train"]),
        test=len(splits["test"]),
        num_classes=splits["train"].features["label"].num_classes,
        num_points=NUM_POINTS,
        groups=groups,
        majority=f"{largest:.3f}",
        offset=f"{np.linalg.norm(points.mean(axis=1), axis=-1).max():.2f}",
        radius=f"{np.linalg.norm(points, axis=-1).max(axis=1).min():.2f}",
        class_table=class_table(splits),
        license_table=license_table(splits),
    )
    write_text(folder / "README.md", card)


def main(words: list[str] | None = None) -> None:
    """Cut both splits and write them with their dataset card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the full train.parquet and test.parquet")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "data", help="folder for the cut and its card"
    )
    arguments = parser.parse_args(words)
    files = {split: str(arguments.source / f"{split}.parquet") for split in ("train", "test")}
    splits = DatasetDict({split: cut_split(rows) for split, rows in load_dataset("parquet", data_files=files).items()})
    shared = set(splits["train"]["group"]) & set(splits["test"]["group"])
    if shared:
        raise ValueError(f"groups {sorted(shared)} are in both splits; a group of duplicates belongs to one of them")
    for split, rows in splits.items():
        with atomic_write(arguments.output / f"{split}.parquet") as unfinished:
            rows.to_parquet(unfinished)
    write_card(splits, arguments.output)


if __name__ == "__main__":
    main()
