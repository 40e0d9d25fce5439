"""The model card of a converted ACT checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d import __version__
from hf_any3d.conversions.act import KINDS
from hf_any3d.converting.act_datasets import TrainedOn
from hf_any3d.converting.card_facts import encoder_whereabouts, file_digest

_CARD = """\
# {title}

{what} This is a checkpoint of the programs that the authors of [ACT](https://arxiv.org/abs/2212.08320) released, \
{described}, converted by hf_any3d {version} (kind `{kind}`). It has {parameters:,} parameters. {teacher}

## How to use it

```bash
pip install hf-any3d
```

```python
{use}
```

## What it computes

The released program, with the accidents that its weights were trained with: {flags}. The defaults of `{config}` are \
the sound ones.{remark}

## Quality

{reported}This conversion measured nothing.

## Source

`{file}`, sha256:{checksum}. Every tensor of it is accounted for{left_out}. The number of patches \
({num_groups} of {group_size} points) and that of attention heads have no shape in a checkpoint; where they were not \
given, they are the published ones.{compared}
"""

_PIPELINE = """\
import hf_any3d  # lets transformers know these models
from transformers import pipeline

{verb} = pipeline("{task}", model="{title}")
{verb}("{example}"{more})"""
_MODEL = """\
from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.act import {architecture}

model = {architecture}.from_pretrained("{title}")
points = PointCloudProcessor.from_pretrained("{title}")("chair.ply", return_tensors="pt")["points"]
{call}"""
_CALLS = {
    "dvae": "cloud = model(points).whole_fine  # (1, points, 3)",
    "pretrain": "features = model.act(points).pooler_output  # what a fine-tuned head would read",
}
_TASKS = {
    "cls": {"verb": "classify", "task": "point-cloud-classification", "example": "chair.ply", "more": ", top_k=3"},
    "partseg": {"verb": "segment", "task": "point-cloud-segmentation", "example": "chair.ply", "more": "{category}"},
    "semseg": {"verb": "segment", "task": "point-cloud-segmentation", "example": "office.ply", "more": ""},
}
_WHAT = {
    "dvae": "Makes a 3D point cloud of discrete codes and back.",
    "pretrain": "A point transformer that learned to guess what a frozen teacher makes of hidden patches.",
    "cls": "Names what a 3D point cloud shows: {labels}.",
    "partseg": "Names the part of an object that every point of a 3D point cloud belongs to: {labels}.",
    "semseg": "Names the object that every point of a room belongs to: {labels}.",
}
# What only released programs do.
_ACCIDENTS = (
    "sampling_min_squared_norm",
    "noise_in_eval",
    "attention_axis",
    "teacher_dropout",
    "detach_teacher",
    "position_injection",
    "use_input_norm",
    "noisy_targets",
    "teacher_in_training_mode",
    "encode_visible_only",
)


def write_card(
    directory: Path,
    title: str,
    checkpoint: Path,
    kind: str,
    model: PreTrainedModel,
    trained_on: TrainedOn | None,
    teacher: str | os.PathLike | None,
) -> None:
    """Write README.md.

    Args:
        directory: Where to.
        title: Name of the repository.
        checkpoint: The authors' file.
        kind: One of `KINDS`.
        model: The converted model.
        trained_on: What it was fine-tuned on, where that is known.
        teacher: The encoder that the frozen teacher was compared with, if one was named.
    """
    config = model.config
    autoencoder = getattr(model, "autoencoder", model if kind == "dvae" else None)
    # A directory on somebody's disk means nothing to a reader of the hub.
    on_hub = teacher is not None and not os.path.isdir(teacher)
    text = _CARD.format(
        title=title,
        what=_WHAT[kind].format(labels=_labels(config, trained_on)),
        described=KINDS[kind].described,
        version=__version__,
        kind=kind,
        parameters=model.num_parameters(),
        teacher=_teacher(autoencoder, on_hub),
        use=_use(kind, title, config),
        flags=", ".join(f"`{text}`" for text in _accidents(config, autoencoder)),
        config=type(config).__name__,
        remark=_remark(trained_on, autoencoder),
        reported=f"The authors report {trained_on.reported}, of the best epoch on the test set. "
        if trained_on and trained_on.reported
        else "",
        file=checkpoint.name,
        checksum=file_digest(checkpoint),
        left_out="; `ACT_encoder.lm_head`, which nothing reads, is left out" if kind == "pretrain" else "",
        num_groups=config.num_groups,
        group_size=config.group_size,
        compared=_compared(teacher, on_hub),
    )
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASKS.get(kind, {}).get("task"),
        base_model=os.fspath(teacher) if on_hub else None,
        tags=["hf_any3d", "act", "point-cloud", "3d"],
        model_name=title,
    )
    (directory / "README.md").write_text(str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")), encoding="utf-8")


def _use(kind: str, title: str, config: PreTrainedConfig) -> str:
    if kind in _CALLS:
        return _MODEL.format(architecture=KINDS[kind].architecture, title=title, call=_CALLS[kind])
    names = getattr(config, "category_names", None) or ["0"]
    category = "Chair" if "Chair" in names else names[0]
    words = {name: word.format(category=f', category="{category}"') for name, word in _TASKS[kind].items()}
    return _PIPELINE.format(title=title, **words)


def _labels(config: PreTrainedConfig, trained_on: TrainedOn | None) -> str:
    count = f"{config.num_labels} labels"
    return f"{count} of {trained_on.title}" if trained_on else f"{count}, whose names are not known"


def _teacher(autoencoder: PreTrainedModel | None, on_hub: bool) -> str:
    if autoencoder is None:
        return ""
    if autoencoder.encoder is None:
        return "It has no teacher."
    kind = autoencoder.config.encoder_config.model_type
    name = autoencoder.config.encoder_name_or_path
    where = encoder_whereabouts(name, on_hub)
    if name is None:
        where = "its layers are stored here, without what embeds words or images, which nothing reads."
    return f"Its frozen teacher is a `{kind}` encoder; {where}"


def _accidents(config: PreTrainedConfig, autoencoder: PreTrainedModel | None) -> list[str]:
    configs = [config] + ([autoencoder.config] if autoencoder is not None else [])
    told: dict[str, None] = {}
    for one in configs:
        sound = type(one)()
        for name in _ACCIDENTS:
            if hasattr(one, name) and getattr(one, name) != getattr(sound, name):
                told[f"{name}={getattr(one, name)!r}"] = None
    return list(told)


def _remark(trained_on: TrainedOn | None, autoencoder: PreTrainedModel | None) -> str:
    remarks = [trained_on.remark] if trained_on and trained_on.remark else []
    if autoencoder is not None:
        remarks.append(
            "Codes are drawn with noise also in eval mode, so the same cloud gives other numbers each time; "
            "`noise_in_eval=False` ends that."
        )
        if autoencoder.config.attention_axis == "batch":
            remarks.append("**Features depend on the other clouds of a batch.**")
    return "".join(f" {remark}" for remark in remarks)


def _compared(teacher: str | os.PathLike | None, on_hub: bool) -> str:
    if teacher is None:
        return ""
    return f" The teacher's layers equal those of {f'`{teacher}`' if on_hub else 'the encoder given'}."
