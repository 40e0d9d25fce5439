"""Recognize the program that wrote a checkpoint by the names of its tensors, with the settings that they show.

`hf-any3d convert` and `hf_any3d.published` read this table. A new program is a row of `PROGRAMS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_any3d.conversions.act.names import KINDS
from hf_any3d.conversions.any2point.variants import variant_of
from hf_any3d.conversions.checkpoints import listed, read_entries, read_json, read_tensors

ENTRIES = ("state_dict", "module", "model", "base_model", "model_state_dict")
"""Keys under which the programs store their tensors."""


@dataclass(frozen=True)
class Program:
    """A program whose checkpoints can be converted, or one kind of its files.

    Args:
        title: Its name, for messages.
        convert: Public function of `hf_any3d.conversions`.
        settings: From the names of the tensors in a file to the arguments of `convert` that they show; None if the
            file is another program's.
        role: Argument of `convert` that takes the file.
        entry: Key that the file must have beside that of its tensors.
    """

    title: str
    convert: str
    settings: Callable[[Collection[str]], dict[str, Any] | None] = lambda names: {}
    role: str = "checkpoint"
    entry: str | None = None


@dataclass(frozen=True)
class Recognized:
    """A file or directory, and what it is."""

    path: Path
    program: Program
    settings: Mapping[str, Any] = field(default_factory=dict)


def _first_of(marks: Mapping[str, dict[str, Any]]) -> Callable[[Collection[str]], dict[str, Any] | None]:
    """Accept files by the first regular expression with which the name of some tensor begins, and what it shows."""
    return lambda names: next(
        (settings for mark, settings in marks.items() if any(re.match(mark, name) for name in names)), None
    )


def _marked(pattern: str) -> Callable[[Collection[str]], dict[str, Any] | None]:
    """Accept files in which the name of some tensor begins with a regular expression."""
    return _first_of({pattern: {}})


# Methods on ACT's transformer, by a tensor that no other has.
_ADAPTERS = {
    r"blocks\.blocks\.\d+\.gft_adapter\.": {"method": "pointgst"},
    r"(blocks\.cls\.|prompt_pos$)": {"method": "idpt"},
    r"blocks\.blocks\.\d+\.Adapter_MLP\.": {"method": "dapt"},
    r"blocks\.prompt_all_mlp\.": {"method": "ppt"},
}
# Files of MiniGPT-3D's training, by their place among each other; later ones hold tensors of earlier ones too.
_STAGES = {
    r"query_router\.": {"order": 4},
    r"Qformer\..*\.lora_": {"order": 3},
    r"llama_(model|proj2?)\.": {"order": 0},
    r"point_2_Qformer_proj\.": {"order": 1},
}
_MINIGPT3D = ("MiniGPT-3D", "convert_minigpt3d")
PROGRAMS = (
    Program("Any2Point", "convert_any2point", variant_of),
    Program("ImageBind's audio encoder", "convert_imagebind_audio", _marked(r"modality_trunks\.audio\.")),
    Program("3DETR", "convert_detr3d", _marked(r"pre_encoder\.mlp_module\.")),
    Program("DGCNN", "convert_dgcnn", _marked(r"conv9\.weight$")),
    Program("PointNet", "convert_pointnet", _marked(r"feature_model\.conv1\.")),
    Program("OpenShape", "convert_openshape", _marked(r"(pc_encoder\.)?(ppat\.)?sa\.mlp_convs\.")),
    Program("SpatialLM", "convert_spatiallm", _marked(r"point_backbone\.")),
    Program("Uni3D", "convert_uni3d", _marked(r"point_encoder\.visual\.")),
    Program("Find3D", "convert_find3d", _marked(r"extractor\.embedding\.stem\.")),
    Program("Point Transformer V3, supervised", "convert_ptv3", _marked(r"(backbone\.)?embedding\.stem\.conv\.")),
    Program("Point Transformer V3", "convert_ptv3", _marked(r"(backbone\.)?embedding\.stem\.")),
    Program(
        "Point Transformer V3",
        "convert_ptv3",
        lambda names: {} if names and all(name.startswith("seg_head.") for name in names) else None,
        role="head",
    ),
    Program(*_MINIGPT3D, _first_of(_STAGES)),
    # BLIP-2 has a Q-Former, but nothing that MiniGPT-3D trains.
    Program(*_MINIGPT3D, _marked(r"Qformer\.bert\."), role="qformer"),
    # Classifiers of ACT with adapters in their blocks.
    Program("PointGST, IDPT, DAPT and PPT", "convert_act_adapter", _first_of(_ADAPTERS)),
    Program("ACT", "convert_act", _first_of({re.escape(kind.mark): {"kind": kind.name} for kind in KINDS.values()})),
    # The same layers as those of MiniGPT-3D's point encoder, with a projection beside them.
    Program("PatchAlign3D", "convert_patchalign3d", _marked(r"encoder\.first_conv\."), entry="proj"),
    Program(*_MINIGPT3D, _marked(r"encoder\.first_conv\."), role="point_encoder"),
)
"""The first row that accepts a file counts."""

# Files of programs whose models are not built here, by a mark that no other file has.
_REFUSED = {
    r"blocks\.layers\.\d+\.gft_adapter\.": "PointGST on PointGPT",
    # Two sizes of local graphs and no graph of all tokens, around another transformer than ACT's.
    r"(?!blocks\.).*gft_adapter\.": "PointGST with graphs of two sizes, in a detector or a completion network",
    r"blocks\.layers\.\d+\.adapt_mlp\.": "DAPT on PointGPT",
    r"(blocks\.dgcnn_cls\d+\.|prompt_cls_pos$)": "IDPT's part segmentation",
    r"cls_prompt_list\.": "VPT-deep in IDPT's program",
}

# Directories by the model type in their config: parts of MiniGPT-3D, as released or converted, released models, and
# those to convert back.
_DIRECTORIES = {
    "act3d": Program(*_MINIGPT3D, role="point_encoder"),
    "blip-2": Program(*_MINIGPT3D, role="qformer"),
    **dict.fromkeys(("phi", "phi-msft", "normed_phi"), Program(*_MINIGPT3D, role="language_model")),
    "detr3d": Program("3DETR", "convert_detr3d_back"),
    "dgcnn": Program("DGCNN", "convert_dgcnn_back"),
    "pointnet": Program("PointNet", "convert_pointnet_back"),
    "point_transformer_v3": Program("Point Transformer V3", "convert_ptv3_back"),
    "spatiallm": Program("SpatialLM", "convert_spatiallm_back"),
    **dict.fromkeys(("spatiallm_qwen", "spatiallm_llama"), Program("SpatialLM", "convert_spatiallm")),
}


def recognize(path: str | os.PathLike) -> Recognized:
    """Find out which program wrote a file or directory.

    Raises:
        ValueError: The tensors are those of no program that is known; names some.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        kind = read_json(config).get("model_type") if config.is_file() else None
        if kind in _DIRECTORIES:
            return Recognized(path, _DIRECTORIES[kind])
        seen = "no config.json" if kind is None else f"model_type {kind!r}"
        raise ValueError(f"{path}: a directory with {seen}; expected one of {', '.join(_DIRECTORIES)}")
    state = read_tensors(path, ENTRIES)
    for mark, name in _REFUSED.items():
        if any(re.match(mark, tensor) for tensor in state):
            raise ValueError(f"{path}: a model of {name}, for which there is no class here; it cannot be converted")
    for program in PROGRAMS:
        settings = program.settings(state.keys())
        has_entry = program.entry is None or (path.suffix != ".safetensors" and program.entry in read_entries(path))
        if settings is not None and has_entry:
            return Recognized(path, program, settings)
    titles = dict.fromkeys(program.title for program in PROGRAMS)
    raise ValueError(f"{path}: its tensors are those of none of {', '.join(titles)}: {listed(sorted(state)[:5])}")


def plan(paths: Sequence[str | os.PathLike]) -> tuple[str, dict[str, Any]]:
    """Choose the conversion of files that belong together.

    Args:
        paths: The authors' files, in any order, such as a model and its head.

    Returns:
        Name of a public function of `hf_any3d.conversions`, and the arguments that the files give it.
    """
    # Of MiniGPT-3D's stages; files of stages II and III look alike, and keep the order in which they were given.
    recognized = sorted(map(recognize, paths), key=lambda file: file.settings.get("order", 0))
    first = recognized[0]
    arguments: dict[str, Any] = {}
    for file in recognized:
        program = file.program
        if program.convert != first.program.convert:
            raise ValueError(
                f"{file.path}: a file of {program.title}, but {first.path} is one of {first.program.title}; convert "
                "them one after the other"
            )
        role, settings = program.role, dict(file.settings)
        # Of stages there may be two files; of each other part one.
        if settings.pop("order", None) is not None and role in arguments:
            role = "second_checkpoint"
        if role in arguments:
            raise ValueError(f"{file.path}: one file of {program.title} too many, as {role}; expected one")
        arguments |= {role: file.path, **settings}
    needed = ["checkpoint"]
    if first.program.convert == "convert_minigpt3d":
        if "checkpoint" not in arguments:
            return "convert_minigpt3d_parts", arguments
        needed = ["point_encoder", "qformer", "language_model"]
    if missing := [role for role in needed if role not in arguments]:
        raise ValueError(f"{first.path}: {first.program.title} lacks {' and '.join(missing)}; give these files too")
    return first.program.convert, arguments
