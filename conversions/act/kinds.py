"""The kinds of checkpoints that ACT's programs write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Args:
        name: What the command line calls it.
        described: What it is, for messages.
        mark: The beginning of a name that no other kind has; of several kinds the first in `KINDS` counts.
        architecture: Our model class.
    """

    name: str
    described: str
    mark: str
    architecture: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("pretrain", "a student with its frozen autoencoder (stage II)", "ACT_encoder.", "ActForPreTraining"),
        Kind("dvae", "a discrete autoencoder (stage I)", "codebook", "ActAutoencoder"),
        Kind("cls", "a classifier", "cls_head_finetune.", "ActForPointCloudClassification"),
        Kind("partseg", "a part segmentation model", "label_conv_cls.", "ActForPartSegmentation"),
        Kind("semseg", "a semantic segmentation model", "convs3_cls.", "ActForSemanticSegmentation"),
    )
}


def kind_of(names: Iterable[str]) -> Kind | None:
    """The kind of checkpoint that has tensors of these names, without `module.`; None where it looks like no kind."""
    names = tuple(names)
    return next((kind for kind in KINDS.values() if any(name.startswith(kind.mark) for name in names)), None)


def check_kind(names: Iterable[str], kind: str) -> Kind:
    """Make sure that tensors are those of a kind.

    Raises:
        ValueError: The kind is unknown, or the tensors look like another one or none.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; expected one of {', '.join(KINDS)}")
    names = tuple(names)
    seen = kind_of(names)
    if seen is None:
        starts = sorted({name.partition(".")[0] for name in names})
        raise ValueError(
            f"this is no ACT checkpoint of kind {kind}: no name begins with {KINDS[kind].mark!r}; they begin with "
            f"{', '.join(starts[:12])}"
        )
    if seen.name != kind:
        raise ValueError(f"this is not {KINDS[kind].described} but {seen.described}; give --kind {seen.name}")
    return seen
