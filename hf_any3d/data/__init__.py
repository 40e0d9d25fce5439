"""Point clouds as datasets: loading, augmenting, batching.

Names are imported when first used, since `datasets` takes seconds to import.
"""

from hf_any3d.modeling.lazy_names import names_on_use

_MODULES = {
    "blocks": ("merge_blocks", "split_into_blocks"),
    "catalog": ("load_point_dataset",),
    "collator": ("PointCloudCollator",),
    "feature": ("PointCloud",),
    "tables.file_conversion": ("add_preview", "embed_files", "files_to_points", "points_to_files"),
    "parquet.publishing": ("push_point_dataset",),
    "splits": ("draw_fold", "validation_split"),
    "torch_datasets": ("AugmentedDataset",),
    "transforms": (
        "CenterAndScale",
        "Compose",
        "FarthestSubsample",
        "Jitter",
        "RandomDropout",
        "RandomRotation",
        "RandomScale",
        "RandomShift",
        "RandomSubsample",
        "RandomUpAxis",
        "Shuffle",
        "build_transform",
    ),
}
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES)
