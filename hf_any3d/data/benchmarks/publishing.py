"""Datasets of point clouds to the hub, with a card and statistics, and not where their terms forbid it."""

import json

from datasets import DatasetDict
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from tqdm.auto import tqdm

from hf_any3d.data.benchmarks.card import card_metadata, card_text
from hf_any3d.data.benchmarks.description import OPEN_LICENCES
from hf_any3d.data.benchmarks.loading import FORMAT_VERSION
from hf_any3d.data.benchmarks.statistics import SplitStatistics


def push_point_dataset(
    splits: DatasetDict,
    repo_id: str,
    *,
    private: bool | None = None,
    licence: str | None = None,
    rights_confirmed: bool = False,
    title: str | None = None,
    token: str | bool | None = None,
    max_shard_size: str | int = "500MB",
) -> str:
    """Push splits to the hub as Parquet that opens without this package, with a card and `meta/stats.json`.

    The card says the licence, where the data come from, how to load and cite them, the columns, the sizes of the
    splits and the number of clouds of each class.

    Args:
        splits: rows with a column `points`; what is known of them is taken from their `info`, where the benchmarks of
            the catalogue have put it.
        repo_id: `owner/name`.
        private: True makes a repository that only its owners see.
        licence: the hub's identifier of the licence; None takes the one in `info`.
        rights_confirmed: True says that you may publish these data although their licence is not an open one.
        title: heading of the card; None takes the name of the repository.
        token: of the hub; None takes the one of the login.
        max_shard_size: of a Parquet file.

    Returns:
        The address of the dataset.

    Raises:
        ValueError: no column `points`; a public repository for data whose terms do not allow to pass them on, or
            whose licence is not known.
    """
    if not splits:
        raise ValueError("splits is empty; expected at least one split")
    for split, rows in splits.items():
        if "points" not in rows.column_names or not len(rows):
            raise ValueError(f"split {split} has {len(rows)} rows of {rows.column_names}; expected some with points")
    licence = next(iter(splits.values())).info.license if licence is None else licence
    api = HfApi(token=token)
    if licence not in OPEN_LICENCES and not rights_confirmed and not _stays_private(api, repo_id, private):
        terms = f"their licence is {licence!r}" if licence else "their licence is not known"
        raise ValueError(
            f"{repo_id} would be public, and {terms}. Pass private=True with a repository that is not public, "
            "licence= with the identifier of an open licence if the data have one, or rights_confirmed=True if you "
            "may publish them"
        )
    statistics = {split: _statistics(split, rows) for split, rows in splits.items()}
    title = title or repo_id.rpartition("/")[2]
    splits.push_to_hub(repo_id, private=private, token=token, max_shard_size=max_shard_size)

    # The upload has written a card that lists files and columns; its head is kept and the rest put beneath.
    card = DatasetCard.load(repo_id, token=token)
    metadata = card_metadata(title, licence, sum(splits.num_rows.values()))
    for name, value in metadata.to_dict().items():
        setattr(card.data, name, value)
    card.text = card_text(repo_id, title, splits, licence, statistics)
    described = json.dumps({"format_version": FORMAT_VERSION, "splits": statistics}, indent=1) + "\n"
    operations = [
        CommitOperationAdd("README.md", str(card).encode()),
        CommitOperationAdd("meta/stats.json", described.encode()),
    ]
    message = "Card and statistics"
    api.create_commit(repo_id, operations, commit_message=message, repo_type="dataset")
    return f"{api.endpoint.rstrip('/')}/datasets/{repo_id}"


def _stays_private(api: HfApi, repo_id: str, private: bool | None) -> bool:
    """Whether nobody else will see it: a repository that exists stays as it is, whatever is asked for."""
    try:
        return bool(api.repo_info(repo_id, repo_type="dataset").private)
    except RepositoryNotFoundError:
        return private is True


def _statistics(split: str, rows) -> dict:
    statistics = SplitStatistics()
    wanted = [name for name in ("points", "label") if name in rows.column_names]
    plain = rows.select_columns(wanted).with_format("numpy")
    for row in tqdm(plain, desc=f"Statistics of {split}", unit=" clouds", disable=None):
        statistics.add(row, rows.features)
    return statistics.as_dict()
