"""Changes to `datasets`, as in `hf_any3d.integration.patches`: clouds that are given without `features=` are stored.

Without a type, `datasets` finds one by the values: images become its `Image`, and what it does not know an error, or a
struct of its attributes. Clouds become `PointCloud` here, in `Dataset.map`, `from_dict`, `from_list`,
`from_generator`, `from_pandas` and `add_column`. Wrappers act on values that are `PointCloudData` alone.
"""

from collections.abc import Callable
from typing import Any

from hf_any3d.data.feature import PointCloud
from hf_any3d.data.files import PointCloudData
from hf_any3d.integration.patches import Patch, apply_patches_of


def apply_datasets_patches() -> None:
    """Apply the patches of `datasets`."""
    apply_patches_of(__name__)


def _feature_of(values: Any) -> Any:
    """Return the feature for a column with clouds, or with lists of them; None for all other columns."""
    is_of_objects = isinstance(values, (list, tuple)) or getattr(getattr(values, "dtype", None), "kind", None) == "O"
    if not is_of_objects:
        return None
    if any(isinstance(value, PointCloudData) for value in values):
        return PointCloud()
    # Like `datasets`, which looks for images in lists by the first value alone.
    first = next((value for value in values if value is not None), None)
    if isinstance(first, (list, tuple)) and any(isinstance(value, PointCloudData) for value in first):
        from datasets import List

        return List(PointCloud())
    if isinstance(first, dict) and any(isinstance(value, PointCloudData) for value in first.values()):
        name = next(name for name, value in first.items() if isinstance(value, PointCloudData))
        raise TypeError(
            f"a cloud in a dict, under {name!r}, in a column without a type; expected a column of clouds, or "
            f"features=Features({{…: {{{name!r}: PointCloud(), …}}}})"
        )
    return None


def _stored(values: Any, feature: Any) -> list[Any]:
    """Return the stored forms of the values of a column; missing ones stay None."""
    from datasets.features.features import encode_nested_example

    return [None if value is None else encode_nested_example(feature, value) for value in values]


@Patch(
    ("datasets.arrow_writer:TypedSequence.__init__",),
    "finds a feature by the values for images alone, and makes a struct of a cloud's attributes, or an error",
)
def _infer_point_clouds(
    original: Callable, self: Any, data: Any, type: Any = None, try_type: Any = None, *args: Any, **kwargs: Any
) -> None:
    feature = _feature_of(data)
    if feature is None:
        original(self, data, type, try_type, *args, **kwargs)
        return
    if type is not None and not repr(type).startswith(repr(feature).partition("(")[0]):
        raise TypeError(
            f"a cloud in a column whose earlier rows are {type}; expected features=Features({{…: PointCloud()}})"
        )
    feature = type or feature
    original(self, _stored(data, feature), feature, None, *args, **kwargs)
    # That of the Arrow type alone would be a struct of bytes and path.
    self._inferred_type = feature


@Patch(
    ("datasets.arrow_dataset:Dataset.from_pandas",),
    "leaves cells to pyarrow, which knows no clouds",
)
def _store_clouds_of_frames(original: Callable, cls: Any, df: Any, *args: Any, **kwargs: Any) -> Any:
    features = {name: feature for name, cells in df.items() if (feature := _feature_of(cells)) is not None}
    if not features:
        return original(cls, df, *args, **kwargs)
    # Not the caller's own frame.
    stored = df.copy(deep=False)
    for name, feature in features.items():
        stored[name] = _stored(df[name], feature)
    opened = original(cls, stored, *args, **kwargs)
    for name, feature in features.items():
        opened = opened.cast_column(name, feature)
    return opened


@Patch(
    ("datasets.arrow_dataset:Dataset.add_column",),
    "leaves values to pyarrow, which knows no clouds",
)
def _add_column_of_clouds(
    original: Callable, self: Any, name: str, column: Any, *args: Any, feature: Any = None, **kwargs: Any
) -> Any:
    found = _feature_of(column)
    if found is not None:
        feature = feature or found
        column = _stored(column, feature)
    return original(self, name, column, *args, feature=feature, **kwargs)
