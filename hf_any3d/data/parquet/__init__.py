"""Published datasets: their descriptions, conversion, cache, and publishing as Parquet."""

from hf_any3d.data.parquet.loading import load_published
from hf_any3d.data.parquet.published_dataset import License, PublishedDataset, SplitSource

__all__ = ["License", "PublishedDataset", "SplitSource", "load_published"]
