"""The model card of a converted Any2Point checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel

from hf_any3d import __version__
from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.converting.card_facts import encoder_whereabouts, file_digest

TASK = "point-cloud-classification"

_CARD = """\
# {title}

Names what a 3D point cloud shows: {classes} classes of {dataset}. This is the checkpoint that the authors of \
[Any2Point](https://arxiv.org/abs/2404.07989) released for this data set with a frozen `{encoder_type}` encoder, \
converted by hf_any3d {version} (variant `{variant}`). {parameters:,} parameters were trained; {encoder}

## How to use it

```bash
pip install hf-any3d
```

```python
import hf_any3d  # lets transformers know these models
from transformers import pipeline

classify = pipeline("{task}", model="{title}", batch_size=1)
classify("chair.ply", top_k=3)
```

```python
from hf_any3d import AutoModelForPointCloudClassification, PointCloudProcessor

model = AutoModelForPointCloudClassification.from_pretrained("{title}")
processor = PointCloudProcessor.from_pretrained("{title}")
logits = model(**processor("chair.ply", return_tensors="pt")).logits  # (1, {classes})
```

## What it computes

The released program, with the accidents that its weights were trained with: {flags}. The defaults of \
`Any2PointConfig` are the sound ones; these weights need these.
{batches}
## Accuracy

The authors report {accuracy} % on the test set of {dataset}. They picked the best epoch on that test set. This \
conversion measured nothing.

## Source

`{file}`, {checksum}. Every tensor of it is accounted for. {checked}
"""

_BATCHES = """
**Predictions depend on the other clouds of a batch** ({flags}). Evaluate with batches of one cloud or with a \
shuffled test set, and say which: in a test set sorted by class, a cloud is helped by neighbours of its own class.
"""


def write_card(
    directory: Path, title: str, checkpoint: Path, variant: str, encoder_name: str, model: PeftModel
) -> None:
    """Write README.md.

    Args:
        directory: Where to.
        title: Name of the repository.
        checkpoint: The authors' file.
        variant: Which of the released programs.
        encoder_name: The encoder that the frozen layers were compared with.
        model: The converted model.
    """
    config, program = model.get_base_model().config, VARIANTS[variant]
    # A directory on somebody's disk means nothing to a reader of the hub.
    on_hub = not os.path.isdir(encoder_name)
    flags = [f"`{name}={value!r}`" for name, value in program.model.items() if name in _ACCIDENTS]
    text = _CARD.format(
        title=title,
        classes=config.num_labels,
        dataset=program.dataset,
        encoder_type=config.encoder_config.model_type,
        version=__version__,
        variant=variant,
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        encoder=encoder_whereabouts(config.encoder_name_or_path, on_hub),
        task=TASK,
        flags=", ".join(flags),
        batches=_BATCHES.format(flags=", ".join(f"`{flag}`" for flag in config.batch_dependent_flags))
        if config.batch_dependent_flags
        else "",
        accuracy=program.accuracy,
        file=checkpoint.name,
        checksum=f"sha256:{file_digest(checkpoint)}",
        checked="Its frozen layers equal those of "
        + (f"`{encoder_name}`, from which the table of positions is taken." if on_hub else "the encoder given."),
    )
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        base_model=encoder_name if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        tags=["hf_any3d", "any2point", "point-cloud", "3d", "guided_adapter"],
        model_name=title,
    )
    (directory / "README.md").write_text(str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")), encoding="utf-8")


_ACCIDENTS = (
    "attention_axis",
    "line_mapping",
    "plane_mapping",
    "transposed_plane_positions",
    "swapped_plane_shape",
    "position_injection",
    "offset_normalization",
    "sampling_min_squared_norm",
)
