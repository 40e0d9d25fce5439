"""Classifiers as files that run without this package: ONNX, and programs of `torch.export`.

Sampling, neighbors, projection, frozen layers and adapters are all in the graph, which accepts any number of clouds
with any number of points.
"""

from hf_any3d.export.exported_files import FORMATS, ExportedFile, export_file, export_onnx
from hf_any3d.export.programs import export_program

__all__ = ["FORMATS", "ExportedFile", "export_file", "export_onnx", "export_program"]
