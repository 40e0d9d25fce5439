"""Models as files that run without this package.

Classifiers are written as ONNX and as programs of `torch.export`: sampling, neighbors, projection, frozen layers and
adapters are all in the graph, which accepts any number of clouds with any number of points. The language model of a
chat model is written as a stock one.
"""

from hf_any3d.export.language_model import encode_prompt_embeds, export_language_model
from hf_any3d.export.onnx import FORMATS, ExportedFile, export_file, export_onnx
from hf_any3d.export.programs import export_program

__all__ = [
    "FORMATS",
    "ExportedFile",
    "encode_prompt_embeds",
    "export_file",
    "export_language_model",
    "export_onnx",
    "export_program",
]
