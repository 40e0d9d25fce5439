"""What all published benchmarks share: their description, the conversion to Parquet and the cache."""

from hf_any3d.data.conversion.dataset_info import Benchmark, Licence, SplitSource
from hf_any3d.data.conversion.loading import load_benchmark

__all__ = ["Benchmark", "Licence", "SplitSource", "load_benchmark"]
