"""Convert published datasets to Parquet: their descriptions, the conversion, the cache and publishing."""

from hf_any3d.data.conversion.loading import load_published
from hf_any3d.data.conversion.published_dataset import Licence, PublishedDataset, SplitSource

__all__ = ["Licence", "PublishedDataset", "SplitSource", "load_published"]
