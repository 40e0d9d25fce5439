"""Classes that files name by words, such as "ground": their numbers, within a file and in several."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, PointCloudFileError
from hf_any3d.utils.messages import cut

NO_LABEL = -1
"""Label of a point without a class."""
# What programs write where a cell has no value, in small letters.
_NO_VALUE = frozenset({"", "nan", "na", "n/a", "#n/a", "null", "none", "<na>"})
# So many different words in more than half of the rows are names of points.
_MOST_NAMES = 64


def numbered(words: Iterable[str | bytes]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the numbers of words in alphabetical order.

    Blanks around words do not count, nor do the ways in which Unicode writes a letter.

    Args:
        words: The class of each point; empty, NaN or null for none.

    Returns:
        Numbers (points,) int64, `NO_LABEL` for no class, and the words by their numbers.

    Raises:
        PointCloudError: Most points have a word of their own, which names a point and no class.
    """
    # Few words and many points: each is looked at once.
    first_seen: dict[str | bytes, int] = {}
    order = np.array([first_seen.setdefault(word, len(first_seen)) for word in words], np.int64)
    plain = []
    for word in first_seen:
        if isinstance(word, bytes):
            try:
                word = word.decode("utf-8")
            except UnicodeDecodeError:
                word = word.decode("latin1")
        plain.append(unicodedata.normalize("NFC", " ".join(word.split())))
    names = sorted({word for word in plain if word.lower() not in _NO_VALUE})
    if len(names) > max(_MOST_NAMES, len(order) / 2):
        raise PointCloudError(f"{len(names):,} different words for {len(order):,} points, which are no classes")
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of.get(word, NO_LABEL) for word in plain], np.int64)
    return numbers[order], tuple(names)


def common_names(names: Iterable[Sequence[str] | None]) -> tuple[str, ...]:
    """Return the classes of several files in alphabetical order, whatever the order of the files."""
    return tuple(sorted({name for of_file in names for name in of_file or ()}))


def renumbered(labels: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return labels (points,) of a file by the numbers that its words have in a list; `NO_LABEL` stays."""
    place_of = {name: place for place, name in enumerate(wanted)}
    # The last one is that of `NO_LABEL`, which is -1.
    places = np.array([*(place_of.get(name, NO_LABEL) for name in names), NO_LABEL], np.int64)
    return places[labels]


def with_words(cloud: PointCloudData, wanted: Sequence[str] | None, name: object) -> PointCloudData:
    """Return a cloud whose labels are numbers of a list of words; None for labels that are numbers anyway.

    Raises:
        PointCloudFileError: Labels are words in one file, and numbers in another one.
    """
    if cloud.labels is None or wanted is None:
        return cloud
    if cloud.label_names is None:
        listed = cut(", ".join(wanted), 60)
        raise PointCloudFileError(
            f"{name}: labels are numbers, and words in other files ({listed}); expected one kind"
        )
    labels = renumbered(cloud.labels, cloud.label_names, wanted)
    return replace(cloud, labels=labels, label_names=tuple(wanted))
