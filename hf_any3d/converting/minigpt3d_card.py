"""The model card of a converted MiniGPT-3D."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from hf_any3d import __version__
from hf_any3d.converting.card_facts import file_digest
from hf_any3d.converting.minigpt3d_stages import STAGES, StageFile
from hf_any3d.converting.minigpt3d_whole import Whole
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig

_PARTS = ("point encoder", "Q-Former", "language model")

_CARD = """\
# {title}

Answers questions about a 3D point cloud in words. These are weights of the authors of \
[MiniGPT-3D](https://arxiv.org/abs/2405.01413), converted by hf_any3d {version}. It has {parameters:,} parameters, \
stored in {dtype}.{state}

## How to use it

```bash
pip install hf-any3d
```

```python
import hf_any3d  # lets transformers know this model
from transformers import pipeline

chat = pipeline("point-cloud-text-to-text", model="{title}")
chat("chair.ply", text="What is this?")
```

It takes {channels} channels of a point: coordinates, then colours from 0 to 1. Clouds are brought to 8,192 points, \
centred and scaled to the unit sphere by the processor.

## What it was trained on

The authors trained on objects of Objaverse: about 660,000 brief descriptions in stages I and II, and about 70,000 \
detailed descriptions and conversations in stages III and IV, both published with PointLLM. Point encoder, Q-Former \
and language model come from PointLLM, BLIP-2 and Phi-2, and the way from the Q-Former to the language model from \
TinyGPT-V.

## What it computes

{experts} LoRA has rank {text_rank} in the language model and {qformer_rank} in the Q-Former; its scale is the \
published one, as no file holds it. Kept as released:

- the weights of the query sets that a cloud is asked with do not sum to 1 (`normalize_router_weights=False`);
- start tokens of later questions are hidden from attention (`hide_inner_bos=True` of the processor), as in training;
- answers end at `###`; the model never learnt an end token.

Otherwise than in the released programs, sampling of patches starts at a cloud's first point and not at a random one, \
and the dropout of the Q-Former's LoRA, which is on there when answering too, is off. `generation_config.json` has \
the settings of the released demo; `PUBLISHED_GENERATION` of `hf_any3d.chat` has those of the released evaluation. \
The processor has the prompts of training (the default), of the evaluation and of the demo as chat templates.

## Quality

This conversion measured nothing.

## Source

{sources}

Every tensor of them is accounted for. Left out are what of BLIP-2 is no part of the Q-Former's path of queries, and \
the copies of the frozen point encoder in the checkpoints{compared}.

## Licence

The authors publish MiniGPT-3D under CC BY-NC-SA 4.0, which forbids commercial use. The licences of PointLLM's \
encoder, BLIP-2, TinyGPT-V and Phi-2 apply to their parts.
"""


def write_card(directory: Path, title: str, whole: Whole, dtype: str) -> None:
    """Write README.md.

    Args:
        directory: Where to.
        title: Name of the repository.
        whole: The model, whose numbers are not looked at.
        dtype: What fractions are stored in.
    """
    config, files = whole.model.config, whole.files
    sources = [_source(name, part.files) for name, part in zip(_PARTS, whole.parts, strict=True)]
    sources += [_source(f"{STAGES[file.stage]}, {file.entries} tensors", [file.path]) for file in files]
    text = _CARD.format(
        title=title,
        version=__version__,
        parameters=whole.model.num_parameters(),
        dtype=dtype,
        state=_state(config, files, whole.fresh),
        channels=config.point_config.in_channels,
        experts=_experts(config),
        text_rank=config.text_lora["r"],
        qformer_rank=config.qformer_lora["r"],
        sources="\n".join(sources),
        compared=", which equal the encoder given" if any(file.encoder for file in files) else "",
    )
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="point-cloud-text-to-text",
        license="cc-by-nc-sa-4.0",
        language="en",
        tags=["hf_any3d", "minigpt3d", "point-cloud", "3d"],
        model_name=title,
    )
    (directory / "README.md").write_text(str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")), encoding="utf-8")


def _source(what: str, files: Sequence[Path]) -> str:
    return f"- {what}: " + ", ".join(f"`{file.name}` (sha256:{file_digest(file)})" for file in files)


def _state(config: MiniGPT3DConfig, files: Sequence[StageFile], fresh: Sequence[str]) -> str:
    last = files[-1].stage
    left = f"stage {'I' * config.stage}" if last == 3 else STAGES[last]
    text = f" It is as {left} left it." if last else ""
    if "bridge.point_mlp" in fresh:
        text += " **Nothing of it was trained on point clouds yet**; it is what stage I starts from."
    if fresh:
        text += f" No file has {', '.join(f'`{name}`' for name in fresh)}; they are as training begins them."
    if config.parts:
        named = ", ".join(name.replace("_", " ") for name in config.parts)
        text += (
            f" Not stored here: {named}. They are loaded from directories of the machine that this was converted on, "
            "and checked against checksums; before sharing, convert with `--store-parts`, or put the parts on the hub "
            "and name them in `parts` of `config.json`."
        )
    return text


def _experts(config: MiniGPT3DConfig) -> str:
    if not config.use_query_experts:
        return "The Q-Former asks with one set of queries."
    return (
        f"A router picks {config.router_top_k} of {config.num_query_experts} sets of queries for each cloud "
        f"(`router={config.router!r}`)."
    )
