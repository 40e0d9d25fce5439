"""Point clouds as datasets: loading, augmenting, batching.

Names are imported when first used, since `datasets` takes seconds to import.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AugmentedDataset": "torch_datasets",
    "CenterAndScale": "transforms",
    "Compose": "transforms",
    "FarthestSubsample": "transforms",
    "Jitter": "transforms",
    "PointCloud": "feature",
    "PointCloudCollator": "collator",
    "RandomDropout": "transforms",
    "RandomRotation": "transforms",
    "RandomScale": "transforms",
    "RandomShift": "transforms",
    "RandomSubsample": "transforms",
    "Shuffle": "transforms",
    "build_transform": "transforms",
    "draw_fold": "splits",
    "embed_files": "file_conversion",
    "files_to_points": "file_conversion",
    "load_point_dataset": "catalog",
    "merge_blocks": "blocks",
    "points_to_files": "file_conversion",
    "push_point_dataset": "conversion.publishing",
    "split_into_blocks": "blocks",
    "validation_split": "splits",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
