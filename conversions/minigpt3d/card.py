"""Write the card of a converted MiniGPT-3D."""

from pathlib import Path

from hf_any3d.conversions.minigpt3d.assembly import STAGES, Assembly
from hf_any3d.conversions.saving import CONVERTED, describe_source, write_card
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.minigpt3d.about import SYSTEM
from hf_any3d.utils.markdown import code

_PARTS = ("point encoder", "Q-Former", "language model")
_COMPUTES = """\
{experts} LoRA has rank {text_rank} in the language model and {qformer_rank} in the Q-Former; its scale is the \
published one, as no file holds it. Kept as released:

- the weights of a cloud's query sets do not sum to 1 (`normalize_router_weights=False`);
- start tokens of later questions are hidden from attention (`hide_inner_bos=True` of the processor), as in training;
- answers end at `###`; the model never learnt an end token.

Unlike in the released programs, sampling of patches starts at a cloud's first point, not at a random one, and the \
dropout of the Q-Former's LoRA, which stays on there during inference, is off. `generation_config.json` has \
the settings of the released demo; `PUBLISHED_GENERATION` of `hf_any3d.chat` has those of the released evaluation. \
The processor has the prompts of training (the default), of the evaluation and of the demo as chat templates."""
_TRAINED_ON = """\
The authors trained on objects of Objaverse: about 660,000 brief descriptions in stages I and II, and about 70,000 \
detailed descriptions and conversations in stages III and IV, both published with PointLLM. Point encoder, Q-Former \
and language model come from PointLLM, BLIP-2 and Phi-2, and the projection from the Q-Former to the language model \
from TinyGPT-V."""
_PART_LICENSES = """\
BLIP-2 of LAVIS is under BSD-3-Clause and Phi-2 under MIT. TinyGPT-V's program is under BSD-3-Clause; no license of \
its weights is known here. The license of PointLLM applies to the point encoder."""
_LICENSE = f"""\
The authors publish MiniGPT-3D under CC BY-NC-SA 4.0, which forbids commercial use and holds for whatever contains \
their weights. {_PART_LICENSES}"""
_START_LICENSE = f"""\
These are not MiniGPT-3D's weights, whose license (CC BY-NC-SA 4.0) forbids commercial use. {_PART_LICENSES}"""


def write_minigpt3d_card(directory: Path, title: str, assembly: Assembly, dtype: str) -> None:
    """Write the card of a converted MiniGPT-3D, whose floats are stored in a dtype."""
    model = assembly.model
    config = assembly.model.config
    files = assembly.files
    assert config.text_lora and config.qformer_lora  # every assembled model has both
    # Parts in their order, then the files of the stages, each with its checksum.
    sources = [describe_source(name, part.files) for name, part in zip(_PARTS, assembly.parts, strict=True)]
    sources += [describe_source(f"{STAGES[file.stage]}, {file.entries} tensors", [file.path]) for file in files]
    paths = [file.path for file in files]
    listed = "\n".join(sources)
    compared = ""
    # Checkpoints hold copies of the frozen encoder, compared when they were read.
    if any(file.encoder for file in files):
        compared = ", which equal the given encoder"
    experts = "The Q-Former has one set of queries."
    if config.use_query_experts:
        experts = (
            f"A router picks {config.router_top_k} of {config.num_query_experts} sets of queries for each cloud "
            f"({code(f'router={config.router!r}')})."
        )
    fresh = assembly.fresh
    last = files[-1].stage
    stage = STAGES[last]
    # Files of stages II and III look alike: the config says which it is.
    if last == 3:
        stage = "stage II" if config.stage == 2 else "stage III"
    state = f" It is the result of {stage}." if last else ""
    # The file that training starts from is of a model for images.
    if "bridge.point_mlp" in fresh:
        state += " **It has not been trained on point clouds yet**; stage I starts from it."
    if fresh:
        state += f" No file has {', '.join(map(code, fresh))}; they are initialized as training does."
    write_card(
        directory,
        title,
        # The model has no weights here, so its numbers are given.
        Subject(type(model), config, total_parameters=model.num_parameters(), num_points=8192),
        f"These are weights in the layout of the authors, {CONVERTED}, stored in {dtype}.{state} "
        f"It takes {config.in_channels} channels per point: "
        "coordinates, then colors from 0 to 1.",
        {
            "What the authors trained on": _TRAINED_ON,
            "What it computes": _COMPUTES.format(
                experts=experts, text_rank=config.text_lora["r"], qformer_rank=config.qformer_lora["r"]
            ),
            "Quality": "The converted model was not evaluated.",
            "Source": f"{listed}\n\nEvery tensor of them is accounted for. Left out are the parts of BLIP-2 that the "
            f"Q-Former's queries do not use, and the copies of the frozen point encoder in the checkpoints{compared}.",
            "License": _LICENSE if last else _START_LICENSE,
        },
        files=paths,
        license=SYSTEM.weights_license.lower() if last else "other",
        language="en",
    )
