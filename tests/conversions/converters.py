"""Every converter with a small original checkpoint, for tests with damaged and malformed ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from hf_any3d.conversions import (
    convert_act,
    convert_act_adapter,
    convert_any2point,
    convert_detr3d,
    convert_dgcnn,
    convert_find3d,
    convert_imagebind_audio,
    convert_minigpt3d,
    convert_minigpt3d_parts,
    convert_openshape,
    convert_patchalign3d,
    convert_pointgpt,
    convert_pointnet,
    convert_ptv3,
    convert_spatiallm,
    convert_uni3d,
)
from hf_any3d.conversions.any2point import VARIANTS
from tests.chat.tiny_tokenizers import character_tokenizer
from tests.conversions.act_originals import Original
from tests.conversions.aligned_originals import openshape_training, patchalign3d, uni3d
from tests.conversions.minigpt3d_originals import Originals
from tests.conversions.originals import SmallCase, content, small_variant
from tests.conversions.pointgpt_case import ENTRIES as POINTGPT, small_file as pointgpt
from tests.conversions.spatiallm_originals import Released
from tests.conversions.test_act_adapters import FILES as ADAPTED, released as adapted_released
from tests.conversions.test_dgcnn_pointnet import released
from tests.conversions.test_imagebind_audio import original as imagebind_original
from tests.modeling.detr3d.reference_case import DetectionCase
from tests.modeling.ptv3_case import Find3DCase, SupervisedCase, ptv3_original
from tests.tiny_encoders import tiny_config


@dataclass(frozen=True)
class Converter:
    """A conversion of one kind of original file.

    Args:
        content: Makes the content of the file.
        state: Its key with the tensors.
        convert: Converts the file at the first path into the second, with other files in the third; returns facts.
        program: The function that it calls.
        prepare: Writes these other files.
    """

    content: Callable[[], dict[str, Any]]
    state: str
    convert: Callable[[Path, Path, Path], dict[str, Any]]
    program: Callable[..., dict[str, Any]]
    prepare: Callable[[Path], None] = lambda directory: None


@cache
def _case() -> SmallCase:
    return SmallCase("any2point_clip_scan")


@cache
def _originals() -> Originals:
    return Originals()


def _any2point(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "clip-scan", small_variant(VARIANTS["clip-scan"]))
        return convert_any2point(checkpoint, "clip-scan", output, encoder=others)


def _act(case: str) -> Converter:
    def convert(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
        return convert_act(checkpoint, Original(case).kind, output)

    kind = Original(case).kind
    state = "model_state_dict" if kind in ("partseg", "semseg") else "base_model"
    return Converter(lambda: Original(case).content(), state, convert, convert_act)


def _pointgpt(kind: str) -> Converter:
    def convert(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
        return convert_pointgpt(checkpoint, output, kind)

    return Converter(lambda: pointgpt(kind), POINTGPT[kind], convert, convert_pointgpt)


def _imagebind(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
    return convert_imagebind_audio(checkpoint, output, config=tiny_config("imagebind_audio"))


def _supervised(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
    return convert_ptv3(checkpoint, output, trained_with="pointcept-1.5.1", arguments=others / "arguments.json")


def _prepare_supervised(directory: Path) -> None:
    (directory / "arguments.json").write_text(json.dumps(SupervisedCase("ptv1_segment").arguments))


def _find3d(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
    return convert_find3d(checkpoint, output, arguments=others / "arguments.json")


def _prepare_find3d(directory: Path) -> None:
    (directory / "arguments.json").write_text(json.dumps(Find3DCase("ptv1_find3d").arguments["extractor"]))


def _part(part: str) -> Callable[[Path, Path, Path], dict[str, Any]]:
    def convert(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
        return convert_minigpt3d_parts(output, **{part: checkpoint})

    return convert


def _phi(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
    shutil.copyfile(checkpoint, others / "pytorch_model.bin")
    return convert_minigpt3d_parts(output, language_model=others)


def _prepare_phi(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(_originals().phi_config()))
    character_tokenizer().save_pretrained(directory)


def _spatiallm(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
    shutil.copyfile(checkpoint, others / "pytorch_model.bin")
    return convert_spatiallm(others, output)


def _stage(checkpoint: Path, output: Path, others: Path) -> dict[str, Any]:
    parts = {
        "point_encoder": others / "point_model.pth",
        "qformer": others / "blip2.pth",
        "language_model": others / "Phi_2",
    }
    return convert_minigpt3d(output, checkpoint=checkpoint, **parts)


CONVERTERS = {
    "any2point": Converter(
        lambda: content(_case()),
        "model",
        _any2point,
        convert_any2point,
        lambda folder: _case().base().save_pretrained(folder),
    ),
    "act-cls": _act("cls"),
    "act-dvae": _act("dvae_clip_deep"),
    "act-pretrain": _act("pretrain"),
    "act-partseg": _act("partseg"),
    "act-adapter": Converter(
        partial(adapted_released, "idpt"),
        "base_model",
        lambda checkpoint, output, others: convert_act_adapter(checkpoint, output, "idpt", **ADAPTED["idpt"].choices),
        convert_act_adapter,
    ),
    "detr3d": Converter(
        lambda: {"model": DetectionCase("detr3d_scannet_vanilla").original},
        "model",
        lambda checkpoint, output, others: convert_detr3d(checkpoint, output),
        convert_detr3d,
    ),
    "dgcnn": Converter(
        lambda: {"model": released("real_dgcnn_s3dis")},
        "model",
        lambda checkpoint, output, others: convert_dgcnn(checkpoint, output),
        convert_dgcnn,
    ),
    "imagebind-audio": Converter(
        lambda: {"model": imagebind_original(tiny_config("imagebind_audio"))},
        "model",
        _imagebind,
        convert_imagebind_audio,
    ),
    "openshape": Converter(
        openshape_training,
        "state_dict",
        lambda checkpoint, output, others: convert_openshape(checkpoint, output),
        convert_openshape,
    ),
    "patchalign3d": Converter(
        patchalign3d,
        "model",
        lambda checkpoint, output, others: convert_patchalign3d(checkpoint, output),
        convert_patchalign3d,
    ),
    "pointgpt-pretrain": _pointgpt("pretrain"),
    "pointgpt-cls": _pointgpt("cls"),
    "pointgpt-partseg": _pointgpt("partseg"),
    "pointnet": Converter(
        lambda: {"model": released("real_pointnet_modelnet40")},
        "model",
        lambda checkpoint, output, others: convert_pointnet(checkpoint, output),
        convert_pointnet,
    ),
    "ptv3": Converter(
        ptv3_original, "state_dict", lambda checkpoint, output, others: convert_ptv3(checkpoint, output), convert_ptv3
    ),
    "ptv3-supervised": Converter(
        lambda: {"state_dict": SupervisedCase("ptv1_segment").tensors()},
        "state_dict",
        _supervised,
        convert_ptv3,
        _prepare_supervised,
    ),
    "find3d": Converter(
        lambda: {"model_state_dict": Find3DCase("ptv1_find3d").tensors()},
        "model_state_dict",
        _find3d,
        convert_find3d,
        _prepare_find3d,
    ),
    "spatiallm": Converter(
        lambda: {"model": Released("qwen").state},
        "model",
        _spatiallm,
        convert_spatiallm,
        lambda folder: Released("qwen").write_settings(folder),
    ),
    "uni3d": Converter(
        lambda: uni3d("uni3d_manifest_tiny"),
        "module",
        lambda checkpoint, output, others: convert_uni3d(checkpoint, output),
        convert_uni3d,
    ),
    "point-encoder": Converter(
        lambda: _originals().point_encoder(), "base_model", _part("point_encoder"), convert_minigpt3d_parts
    ),
    "qformer": Converter(lambda: _originals().blip2(), "model", _part("qformer"), convert_minigpt3d_parts),
    "phi": Converter(
        lambda: {"model": dict(_originals().phi())}, "model", _phi, convert_minigpt3d_parts, _prepare_phi
    ),
    "minigpt3d-stage": Converter(
        lambda: _originals().stage(3),
        "model",
        _stage,
        convert_minigpt3d,
        lambda folder: _originals().write(folder) and None,
    ),
}
