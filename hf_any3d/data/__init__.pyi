"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d.data.blocks import merge_blocks as merge_blocks, split_into_blocks as split_into_blocks
from hf_any3d.data.catalog import load_point_dataset as load_point_dataset
from hf_any3d.data.collator import PointCloudCollator as PointCloudCollator
from hf_any3d.data.feature import PointCloud as PointCloud
from hf_any3d.data.parquet.publishing import push_point_dataset as push_point_dataset
from hf_any3d.data.splits import draw_fold as draw_fold, validation_split as validation_split
from hf_any3d.data.tables.file_conversion import (
    add_preview as add_preview,
    embed_files as embed_files,
    files_to_points as files_to_points,
    points_to_files as points_to_files,
)
from hf_any3d.data.torch_datasets import AugmentedDataset as AugmentedDataset
from hf_any3d.data.transforms import (
    CenterAndScale as CenterAndScale,
    Compose as Compose,
    FarthestSubsample as FarthestSubsample,
    Jitter as Jitter,
    RandomDropout as RandomDropout,
    RandomRotation as RandomRotation,
    RandomScale as RandomScale,
    RandomShift as RandomShift,
    RandomSubsample as RandomSubsample,
    RandomUpAxis as RandomUpAxis,
    Shuffle as Shuffle,
    build_transform as build_transform,
)
