"""What all published dataset share: their description, the conversion to Parquet and the cache."""

from hf_any3d.data.conversion.loading import load_published
from hf_any3d.data.conversion.published_dataset import Licence, PublishedDataset, SplitSource

__all__ = ["PublishedDataset", "Licence", "SplitSource", "load_published"]
