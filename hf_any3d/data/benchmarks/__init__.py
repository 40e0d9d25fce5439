"""What all published benchmarks share: their description, the conversion to Parquet and the cache."""

from hf_any3d.data.benchmarks.conversion import SplitSource
from hf_any3d.data.benchmarks.description import Benchmark, Licence
from hf_any3d.data.benchmarks.loading import load_benchmark

__all__ = ["Benchmark", "Licence", "SplitSource", "load_benchmark"]
