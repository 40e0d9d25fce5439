"""Tell the files of Point-MAE, Point-BERT, ReCon and PointGPT apart by the names of their tensors.

They share layers, prefixes and names of heads with each other and with ACT, so a single mark does not tell whose a
file is. A record takes the files of a system by a `Program` with its title and no marks; see `TABLE`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hf_any3d.conversions.renaming import matches_some


@dataclass(frozen=True)
class PointStart:
    """One kind of file.

    Attributes:
        system: The system that it is of, the title of a `Program`.
        described: What it is, for messages.
        marks: Regular expressions, each of which matches the beginning of some tensor's name.
        kind: Argument of the conversion; None for a file that no class here is for.
    """

    system: str
    described: str
    marks: tuple[str, ...]
    kind: str | None


_BLOCKS = r"blocks\.blocks\.\d+\."
_CONTRAST = rf"{_BLOCKS}attn_contrast\."
_CLASSES = r"cls_head_finetune\."
_CAUSAL = r"(generator_)?blocks\.(layers\.\d+\.ln_[12]\.|ln_f\.|sos$)"
# Any part of the head for points, as a damaged file may lack some.
_POINTS = r"(label_conv|propagation_0|convs[123])\."

TABLE = (
    PointStart("ReCon", "a student of two towers, an ablation", (r"Dis_encoder\.",), None),
    PointStart("ReCon", "a pretraining file", (rf"MAE_encoder\.(img_token$|{_CONTRAST})",), "pretrain"),
    PointStart("Point-MAE", "a pretraining file", (r"MAE_encoder\.",), "point_mae"),
    PointStart("PointGPT", "a pretraining file", (r"GPT_Transformer\.",), "pretrain"),
    PointStart("PointGPT", "a classifier", (rf"blocks\.{_CLASSES}",), "cls"),
    PointStart("PointGPT", "a part segmentation model", (_CAUSAL, _POINTS), "partseg"),
    PointStart("PointGPT", "a transformer without a head", (_CAUSAL,), None),
    PointStart("ReCon", "a classifier", (_CONTRAST, _CLASSES), "cls"),
    PointStart("ReCon", "a part segmentation model", (_CONTRAST, _POINTS), "partseg"),
    PointStart("ReCon", "a model for names of classes", (_CONTRAST, r"(img|text)_proj\."), "zero_shot"),
    PointStart("ReCon", "a transformer without a head", (_CONTRAST,), "transformer"),
    PointStart("Point-BERT", "a pretraining file", (r"transformer_q\.",), "point_bert"),
    PointStart("Point-BERT", "a classifier", (_BLOCKS, rf"{_CLASSES}3\."), "point_bert_cls"),
    PointStart("Point-BERT", "a part segmentation model", (_BLOCKS, r"dgcnn_pro_[12]\."), "point_bert_partseg"),
    PointStart("Point-MAE", "a part segmentation model", (_BLOCKS, _POINTS), "partseg"),
)
"""The first row counts all of whose marks are found; classifiers of Point-MAE have the names of ACT's."""


def start_of(names: Collection[str]) -> PointStart | None:
    """Return the kind of file that tensors of these names are of, without `module.`; None for any other."""
    for start in TABLE:
        if all(matches_some(mark, names) for mark in start.marks):
            return start
    return None
