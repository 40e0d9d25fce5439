"""Push datasets of point clouds to the hub with a card and statistics, unless their terms forbid it."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, List
from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from hf_any3d.data.options import require_columns
from hf_any3d.data.parquet.published_dataset import OPEN_LICENSES
from hf_any3d.data.tables.file_conversion import add_preview
from hf_any3d.data.tables.numpy_rows import numpy_rows, refuse_transform
from hf_any3d.hub.names import refuse_push_if_offline
from hf_any3d.utils.atomic_files import atomic_write, write_json, write_text
from hf_any3d.utils.markdown import code, inline, literal, one_line, paragraphs
from hf_any3d.utils.messages import printable
from hf_any3d.utils.progress import progress_bar

_TEXT = """\
# {title}

{description}

## How to use it

```python
from datasets import load_dataset

clouds = load_dataset({repo_id})
row = clouds[{split}].with_format("numpy")[0]
row["points"].shape  # {shape}
```

All columns are of plain types; no other package is needed. With hf_any3d the \
same rows are {call}.

## Columns

| column | type |
|---|---|
{columns}

## Splits

| split | clouds | points a cloud | x, y, z from | to |
|---|---|---|---|---|
{splits}

The same figures are in `meta/stats.json`.

{classes}## License and source

{license}
{homepage}{citation}"""


def push_point_dataset(
    splits: DatasetDict | Dataset,
    repo_id: str,
    *,
    private: bool | None = None,
    license: str | None = None,
    rights_confirmed: bool = False,
    title: str | None = None,
    token: str | bool | None = None,
    max_shard_size: str | int = "500MB",
    preview: bool = False,
) -> str:
    """Push splits to the hub as Parquet, with a card and `meta/stats.json`, and return the address of the dataset.

    The card has the license, the origin of the data, how to load and cite them, the columns, the sizes of the splits
    and the number of clouds of each class.

    Args:
        splits: rows with a column `points`; description, citation and license are taken from their `info`, which the
            datasets of the catalog fill in. A single Dataset is pushed under the name of its split, else as "train".
        repo_id: `owner/name`.
        private: True creates a private repository.
        license: the hub's identifier of the license; None takes the one in `info`, which must be the same for all
            splits.
        rights_confirmed: True confirms that you may publish these data although the license in `info` or `license` is
            not an open one.
        title: heading of the card; None takes the name of the repository.
        token: hub token; None takes the one of the login.
        max_shard_size: of a Parquet file.
        preview: True adds a column of small .ply files, which the viewer of the hub draws; see `add_preview`.

    Raises:
        TypeError: `splits` is neither a DatasetDict nor a Dataset.
        ValueError: no column `points`; splits of different licenses; a public repository for data whose license is
            unknown or does not allow redistribution.
    """
    if isinstance(splits, Dataset):
        splits = DatasetDict({str(splits.split or "train"): splits})  # as `Dataset.push_to_hub` names it
    if not isinstance(splits, DatasetDict):
        raise TypeError(f"splits={type(splits).__name__}; expected a DatasetDict or a Dataset")
    for split, rows in splits.items():
        refuse_transform(rows, "push_point_dataset")
        require_columns(["points"], rows.column_names, f"split {split}: ")
        if not len(rows):
            raise ValueError(f"split {split} has no rows; expected some with points")
    stated = {str(split): rows.info.license or "" for split, rows in splits.items()}
    if license is None:
        if len(set(stated.values())) > 1:
            raise ValueError(f"the splits have the licenses {stated}; expected one license, or license= for all")
        license = next(iter(stated.values()))
    refuse_push_if_offline(repo_id)
    api = HfApi(token=token)
    # Before anything is uploaded.
    closed = [terms for terms in (license, *filter(None, stated.values())) if terms not in OPEN_LICENSES]
    if closed and not rights_confirmed:
        try:
            # An existing repository keeps its visibility, whatever is requested.
            stays_private = bool(api.repo_info(repo_id, repo_type="dataset").private)
        except RepositoryNotFoundError:
            stays_private = private is True
        if not stays_private:
            terms = f"their license is {closed[0]!r}" if closed[0] else "their license is not known"
            raise ValueError(
                f"{repo_id} would be public, and {terms}. Pass private=True with a repository that is not public, "
                "license= with the identifier of an open license if the data have one, or rights_confirmed=True if "
                "you may publish them"
            )
    # This reads all clouds, so a damaged one stops before anything is uploaded.
    statistics = {str(split): split_statistics(str(split), rows) for split, rows in splits.items()}
    title = title or repo_id.rpartition("/")[2]
    if preview:
        splits = add_preview(splits)
    splits.push_to_hub(repo_id, private=private, token=token, max_shard_size=max_shard_size)  # pyright: ignore[reportArgumentType] - token may be a bool

    # The upload has written a card that lists files and columns: keep its metadata, add ours and the text.
    card = DatasetCard.load(repo_id, token=token)  # pyright: ignore[reportArgumentType] - token may be a bool
    metadata = card_metadata(title, license, sum(splits.num_rows.values()))
    for name, value in metadata.to_dict().items():
        setattr(card.data, name, value)
    card.text = card_text(repo_id, title, splits, license, statistics)
    stats = json.dumps({"format_version": 1, "splits": statistics}, indent=1) + "\n"
    files = {"README.md": str(card), "meta/stats.json": stats}
    # In one commit, so that card and statistics always agree.
    operations = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    api.create_commit(repo_id, operations, commit_message="Card and statistics", repo_type="dataset")
    return f"{api.endpoint.rstrip('/')}/datasets/{repo_id}"


def write_point_dataset(splits: DatasetDict, folder: str | os.PathLike) -> None:
    """Write splits as Parquet files with a card and `meta/stats.json`, as `push_point_dataset` pushes them.

    `load_point_dataset("parquet", data_dir=folder)` and `datasets.load_dataset(folder)` open the folder.

    Raises:
        ValueError: A split without the column `points`.
    """
    folder = Path(folder)
    for split, rows in splits.items():
        refuse_transform(rows, "write_point_dataset")
        require_columns(["points"], rows.column_names, f"split {split}: ")
    statistics = {}
    for split, rows in splits.items():
        # A name by which `datasets` finds the split.
        with atomic_write(folder / "data" / f"{split}-00000-of-00001.parquet") as unfinished:
            rows.with_format(None).to_parquet(unfinished)
        statistics[str(split)] = split_statistics(str(split), rows)
    # The splits come from one source, and have its license.
    license = next(iter(splits.values())).info.license or ""
    card = card_metadata(folder.name, license or "unknown", sum(splits.num_rows.values())).to_yaml()
    text = card_text(str(folder), folder.name, splits, license, statistics)
    write_text(folder / "README.md", f"---\n{card}\n---\n\n{text}\n")
    write_json(folder / "meta" / "stats.json", {"splits": statistics})


def split_statistics(split: str, rows: Dataset) -> dict:
    """Return number of clouds, points per cloud, bounds and clouds per class of a split, with a progress bar."""
    sizes = []
    # (3,), over all clouds, in the units of the files
    lower = np.full(3, np.inf)
    upper = np.full(3, -np.inf)
    labels: Counter = Counter()
    feature = rows.features.get("label")
    # Other columns may be files, which would be opened for nothing.
    columns = [name for name in ("points", "label") if name in rows.column_names]
    plain = cast("Iterable[dict[str, Any]]", numpy_rows(rows.select_columns(columns)))
    for row in progress_bar(plain, desc=f"Statistics of {split}", unit=" clouds"):
        points = np.asarray(row["points"])[:, :3]  # (points, 3)
        sizes.append(len(points))
        lower = np.minimum(lower, points.min(axis=0))
        upper = np.maximum(upper, points.max(axis=0))
        if isinstance(feature, ClassLabel):
            labels[feature.int2str(int(row["label"]))] += 1
    statistics: dict[str, Any] = {"num_rows": len(sizes)}
    if sizes:
        mean = round(sum(sizes) / len(sizes), 3)
        statistics["points_per_cloud"] = {"min": min(sizes), "mean": mean, "max": max(sizes)}
        statistics["num_points"] = sum(sizes)
        statistics["bounds"] = {"min": lower.tolist(), "max": upper.tolist()}
    if labels:
        statistics["labels"] = dict(sorted(labels.items()))
    return statistics


def card_metadata(title: str, license: str, num_rows: int) -> DatasetCardData:
    """Return the metadata at the head of the card; the license is an identifier of the hub, or terms in words."""
    # The size categories that the hub knows
    steps = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
    size = next((name for name, limit in steps if num_rows < limit), "n>10M")
    data: dict[str, Any] = {"pretty_name": one_line(title), "tags": ["3d", "point-cloud"], "size_categories": [size]}
    if license in OPEN_LICENSES:
        return DatasetCardData(license=license, **data)
    # Terms in words are no identifier of the hub, which calls them "other".
    links = [word for word in one_line(license, 1000).split() if word.startswith("https://")]
    if links:
        data["license_link"] = links[-1]  # `str(License)` ends with the link
    return DatasetCardData(license="other", license_name="other", **data)


def card_text(repo_id: str, title: str, splits: DatasetDict, license: str, statistics: Mapping[str, dict]) -> str:
    """Write the card; `statistics` are those of each split, as `split_statistics` returns them."""
    split = next(iter(splits))
    features = splits[split].features
    info = splits[split].info
    # A fence inside would end the block.
    cited = "\n".join(printable(line) for line in (info.citation or "").strip().replace("```", "'''").splitlines())
    citation = f"\n```bibtex\n{cited}\n```\n" if cited else ""
    # Addresses within the terms become links, all else is escaped.
    words = []
    for word in one_line(license, 1000).split():
        words.append(_link(word) if word.startswith("http") else inline(word))
    terms = " ".join(words)
    columns = [f"| {inline(name)} | {inline(_type(feature))} |" for name, feature in features.items()]
    sizes = []
    for name, of_split in statistics.items():
        counts = of_split["points_per_cloud"]
        points = f"{counts['min']:,}"
        if counts["max"] != counts["min"]:
            points += f" to {counts['max']:,}"
        low = ", ".join(f"{value:.4g}" for value in of_split["bounds"]["min"])
        high = ", ".join(f"{value:.4g}" for value in of_split["bounds"]["max"])
        sizes.append(f"| {inline(name)} | {of_split['num_rows']:,} | {points} | {low} | {high} |")
    feature = features.get("label")
    classes = ""
    if isinstance(feature, ClassLabel):
        lines = ["## Clouds of each class", "", f"| label | class | {' | '.join(map(inline, statistics))} |"]
        lines.append("|---|---|" + "---|" * len(statistics))
        for number, name in enumerate(feature.names):
            # A split may lack some of the classes.
            counts = " | ".join(str(of_split.get("labels", {}).get(name, 0)) for of_split in statistics.values())
            lines.append(f"| {number} | {inline(name)} | {counts} |")
        classes = "\n".join(lines) + "\n\n"
    return _TEXT.format(
        title=inline(title),
        description=paragraphs(info.description or "Point clouds."),
        repo_id=literal(repo_id),
        call=code(f"load_point_dataset({literal(repo_id)})"),
        split=literal(split),
        # The first size is None where clouds have different numbers of points.
        shape=f"({features['points'].shape[0] or 'points'}, {features['points'].shape[1]})",
        columns="\n".join(columns),
        splits="\n".join(sizes),
        classes=classes,
        license=terms[:1].upper() + terms[1:] or "The license is not known.",
        homepage=f"\nHomepage: {_link(info.homepage)}\n" if info.homepage else "",
        citation=citation,
    )


def _type(feature: object) -> str:
    if isinstance(feature, Array2D):
        return f"Array2D ({feature.shape[0] or 'points'}, {feature.shape[1]}) {feature.dtype}"
    if isinstance(feature, ClassLabel):
        return f"ClassLabel, {len(feature.names)} classes"
    if type(feature).__name__ == "Mesh":  # which datasets has from 5.0 on
        return "Mesh, a .ply file for viewers"
    if isinstance(feature, List):
        return f"list of {_type(feature.feature)}"
    if isinstance(feature, dict):
        return f"({', '.join(f'{name}: {_type(column)}' for name, column in feature.items())})"
    return getattr(feature, "dtype", type(feature).__name__)


def _link(address: str) -> str:
    address = one_line(address, 1000)
    # Anything else could be markup rather than an address.
    return address if re.fullmatch(r"https?://[\w.~:/?#@!$&'*+,;=%-]+", address) else inline(address)
