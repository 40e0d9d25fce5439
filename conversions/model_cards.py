"""Write the model cards of converted checkpoints: what the authors released, and how it was converted."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.conversions.act import KINDS
from hf_any3d.conversions.act.datasets import TrainedOn
from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.conversions.minigpt3d.assembly import Assembly
from hf_any3d.conversions.minigpt3d.stages import STAGES, StageFile
from hf_any3d.hub.published_table import MINIGPT3D
from hf_any3d.model_card.building import build_model_card
from hf_any3d.model_card.saving import FILE, sign_card
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.pretrained_parts.sources import file_digest
from hf_any3d.utils.atomic_files import write_text
from hf_any3d.utils.markdown import code, inline
from hf_any3d.version import __version__

# Settings that only released programs use.
_ANY2POINT_QUIRKS = (
    "attention_axis line_mapping plane_mapping transposed_plane_positions swapped_plane_shape position_injection "
    "offset_normalization sampling_min_squared_norm"
).split()
_ACT_QUIRKS = (
    "sampling_min_squared_norm noise_in_eval attention_axis teacher_dropout detach_teacher position_injection "
    "use_input_norm noisy_targets teacher_in_training_mode encode_visible_only"
).split()
_ACT_WHAT = {
    "dvae": "Encodes a 3D point cloud as discrete codes and reconstructs it from them.",
    "pretrain": "A point transformer pretrained to predict a frozen teacher's features of masked patches.",
    "cls": "Classifies 3D point clouds: {labels}.",
    "partseg": "Segments 3D point clouds of objects into parts: {labels}.",
    "semseg": "Segments 3D point clouds of rooms into objects: {labels}.",
}
_MINIGPT3D_PARTS = ("point encoder", "Q-Former", "language model")
_MINIGPT3D_COMPUTES = """\
{experts} LoRA has rank {text_rank} in the language model and {qformer_rank} in the Q-Former; its scale is the \
published one, as no file holds it. Kept as released:

- the weights of a cloud's query sets do not sum to 1 (`normalize_router_weights=False`);
- start tokens of later questions are hidden from attention (`hide_inner_bos=True` of the processor), as in training;
- answers end at `###`; the model never learnt an end token.

Unlike in the released programs, sampling of patches starts at a cloud's first point, not at a random one, and the \
dropout of the Q-Former's LoRA, which stays on there during inference, is off. `generation_config.json` has \
the settings of the released demo; `PUBLISHED_GENERATION` of `hf_any3d.chat` has those of the released evaluation. \
The processor has the prompts of training (the default), of the evaluation and of the demo as chat templates."""
_MINIGPT3D_TRAINED_ON = """\
The authors trained on objects of Objaverse: about 660,000 brief descriptions in stages I and II, and about 70,000 \
detailed descriptions and conversations in stages III and IV, both published with PointLLM. Point encoder, Q-Former \
and language model come from PointLLM, BLIP-2 and Phi-2, and the projection from the Q-Former to the language model \
from TinyGPT-V."""
_MINIGPT3D_LICENSE = """\
The authors publish MiniGPT-3D under CC BY-NC-SA 4.0, which forbids commercial use. The licenses of PointLLM's \
encoder, BLIP-2, TinyGPT-V and Phi-2 apply to their parts."""


def write_any2point_card(
    directory: Path, title: str, checkpoint: Path, variant: str, encoder_name: str, model: PeftModel
) -> None:
    """Write the card of a converted Any2Point checkpoint.

    Args:
        directory: Existing directory to write to.
        title: Name of the repository.
        checkpoint: The authors' file.
        variant: One of `VARIANTS`.
        encoder_name: The encoder that the frozen layers were compared with.
        model: The converted model.
    """
    subject, program = Subject.from_model(model), VARIANTS[variant]
    on_hub = not os.path.isdir(encoder_name)
    flags = ", ".join(code(f"{key}={value!r}") for key, value in program.model.items() if key in _ANY2POINT_QUIRKS)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    compared = f"{code(encoder_name)}, the source of the position table." if on_hub else "the given encoder."
    card = build_model_card(
        subject,
        title,
        intro=f"Classifies 3D point clouds: {subject.config.num_labels} classes of {inline(program.dataset)}.",
        remark=f"This is the checkpoint that the authors released for this dataset, converted by hf_any3d "
        f"{__version__} (variant {code(variant)}). {trained:,} parameters were trained.",
        base_model=encoder_name if on_hub else None,
        sections={
            "What it computes": "The released program, with the quirks that its weights were trained with: "
            f"{flags}. The defaults of `Any2PointConfig` are the sound ones; these weights need these.",
            "Accuracy": f"The authors report {program.accuracy} % on the test set of {inline(program.dataset)}. They "
            "picked the best epoch on that test set. The converted model was not evaluated.",
            "Source": f"{code(checkpoint.name)}, sha256:{file_digest(checkpoint)}. Every tensor of it is accounted "
            f"for. Its frozen layers equal those of {compared}",
        },
    )
    _write(card, directory)


def write_act_card(
    directory: Path,
    title: str,
    checkpoint: Path,
    kind: str,
    model: PreTrainedModel,
    trained_on: TrainedOn | None,
    teacher: str | os.PathLike | None,
) -> None:
    """Write the card of a converted ACT checkpoint.

    Args:
        directory: Existing directory to write to.
        title: Name of the repository.
        checkpoint: The authors' file.
        kind: One of `KINDS`.
        model: The converted model.
        trained_on: The dataset of its fine-tuning, if known.
        teacher: The encoder that the frozen teacher was compared with, if one was named.
    """
    config = model.config
    autoencoder = getattr(model, "autoencoder", model if kind == "dvae" else None)
    on_hub = None if teacher is None or os.path.isdir(teacher) else os.fspath(teacher)
    flags = ", ".join(code(text) for text in _quirks(config, autoencoder))
    labels = f"{config.num_labels} labels"
    labels += f" of {inline(trained_on.title)}" if trained_on else ", whose names are not known"
    reported = ""
    if trained_on and trained_on.reported:
        reported = f"The authors report {trained_on.reported}, of the best epoch on the test set. "
    left_out = "; `ACT_encoder.lm_head`, which nothing reads, is left out" if kind == "pretrain" else ""
    compared = ""
    if teacher is not None:
        compared = f" The teacher's layers equal those of {code(on_hub) if on_hub else 'the given encoder'}."
    card = build_model_card(
        Subject.from_model(model),
        title,
        intro=_ACT_WHAT[kind].format(labels=labels),
        remark=f"This is a checkpoint of the programs that the authors released, {KINDS[kind].described}, converted "
        f"by hf_any3d {__version__} (kind {code(kind)}).{_teacher(autoencoder)}",
        base_model=on_hub,
        sections={
            "What it computes": f"The released program, with the quirks that its weights were trained with: "
            f"{flags}. The defaults of `{type(config).__name__}` are the sound ones."
            f"{_act_remarks(trained_on, autoencoder)}",
            "Quality": f"{reported}The converted model was not evaluated.",
            "Source": f"{code(checkpoint.name)}, sha256:{file_digest(checkpoint)}. Every tensor of it is accounted "
            f"for{left_out}. The number of patches ({config.num_groups} of {config.group_size} points) and that of "
            f"attention heads cannot be read from a checkpoint; unless given, they are the published ones.{compared}",
        },
    )
    _write(card, directory)


def write_minigpt3d_card(directory: Path, title: str, assembly: Assembly, dtype: str) -> None:
    """Write the card of a converted MiniGPT-3D.

    Args:
        directory: Existing directory to write to.
        title: Name of the repository.
        assembly: The assembled model.
        dtype: Type that floats are stored in.
    """
    model, config, files = assembly.model, assembly.model.config, assembly.files
    assert config.text_lora and config.qformer_lora  # every assembled model has both
    sources = [_source(name, part.files) for name, part in zip(_MINIGPT3D_PARTS, assembly.parts, strict=True)]
    sources += [_source(f"{STAGES[file.stage]}, {file.entries} tensors", [file.path]) for file in files]
    listed = "\n".join(sources)
    compared = ", which equal the given encoder" if any(file.encoder for file in files) else ""
    card = build_model_card(
        Subject(type(model), config, total_parameters=model.num_parameters(), num_points=8192),
        title,
        license=MINIGPT3D.weights_license.lower(),
        language="en",
        remark=f"These are weights of the authors, converted by hf_any3d {__version__}, stored in {dtype}."
        f"{_training_state(config, files, assembly.fresh)} It takes {config.in_channels} channels per "
        "point: coordinates, then colors from 0 to 1.",
        sections={
            "What it was trained on": _MINIGPT3D_TRAINED_ON,
            "What it computes": _MINIGPT3D_COMPUTES.format(
                experts=_experts(config), text_rank=config.text_lora["r"], qformer_rank=config.qformer_lora["r"]
            ),
            "Quality": "The converted model was not evaluated.",
            "Source": f"{listed}\n\nEvery tensor of them is accounted for. Left out are the parts of BLIP-2 that the "
            f"Q-Former's queries do not use, and the copies of the frozen point encoder in the checkpoints{compared}.",
            "License": _MINIGPT3D_LICENSE,
        },
    )
    _write(card, directory)


def write_converted_card(
    directory: Path,
    title: str,
    model: PreTrainedModel,
    takes: str,
    files: Mapping[str, Path],
    remarks: Mapping[str, str],
    num_points: int | None = None,
) -> None:
    """Write the card of a converted encoder or detector.

    Args:
        directory: Existing directory to write to.
        title: Name of the repository.
        model: The model, perhaps without weights; its config records the license.
        takes: Sentences that follow "It takes".
        files: The authors' files, by what they hold.
        remarks: Further sections, title to text.
        num_points: Points that the processor samples, if it does.
    """
    sources = "\n".join(_source(what, [file]) for what, file in files.items())
    card = build_model_card(
        Subject.from_model(model, num_points=num_points),
        title,
        remark=f"These are weights of the authors, converted by hf_any3d {__version__}. It takes {takes}",
        sections={
            **remarks,
            "Quality": "The converted model was not evaluated.",
            "Source": f"{sources}\n\nEvery tensor of {'them' if len(files) > 1 else 'it'} is accounted for.",
        },
    )
    _write(card, directory)


def _write(card: ModelCard, directory: Path) -> None:
    write_text(directory / FILE, sign_card(str(card)))


def _teacher(autoencoder: PreTrainedModel | None) -> str:
    if autoencoder is None:
        return ""
    if autoencoder.encoder is None:
        return " It has no teacher."
    text = f" Its frozen teacher is a {code(autoencoder.config.encoder_config.model_type)} encoder"
    if autoencoder.config.encoder_name_or_path is None:
        text += "; its layers are stored here, without its embeddings, which nothing reads"
    return f"{text}."


def _quirks(config: PreTrainedConfig, autoencoder: PreTrainedModel | None) -> list[str]:
    configs = [config] + ([autoencoder.config] if autoencoder is not None else [])
    found: dict[str, None] = {}
    for one in configs:
        sound = type(one)()
        for name in _ACT_QUIRKS:
            if hasattr(one, name) and getattr(one, name) != getattr(sound, name):
                found[f"{name}={getattr(one, name)!r}"] = None
    return list(found)


def _act_remarks(trained_on: TrainedOn | None, autoencoder: PreTrainedModel | None) -> str:
    remarks = [trained_on.remark] if trained_on and trained_on.remark else []
    if autoencoder is not None:
        remarks.append(
            "Codes are drawn with noise in eval mode too, so results for the same cloud differ from call to call; "
            "`noise_in_eval=False` turns this off."
        )
        if autoencoder.config.attention_axis == "batch":
            remarks.append("**Features depend on the other clouds of a batch.**")
    return "".join(f" {remark}" for remark in remarks)


def _source(what: str, files: Sequence[Path]) -> str:
    return f"- {what}: " + ", ".join(f"{code(file.name)} (sha256:{file_digest(file)})" for file in files)


def _training_state(config: MiniGPT3DConfig, files: Sequence[StageFile], fresh: Sequence[str]) -> str:
    last = files[-1].stage
    stage = f"stage {'I' * (config.stage or last)}" if last == 3 else STAGES[last]
    text = f" It is the result of {stage}." if last else ""
    if "bridge.point_mlp" in fresh:
        text += " **It has not been trained on point clouds yet**; stage I starts from it."
    if fresh:
        text += f" No file has {', '.join(map(code, fresh))}; they are initialized as training does."
    if config.parts:
        named = ", ".join(name.replace("_", " ") for name in config.parts)
        text += (
            f" Not stored here: {named}. They are loaded from directories of the machine that converted this model, "
            "and checked against checksums; before sharing, convert with `--store-parts`, or push the parts to the "
            "hub and name them in `parts` of `config.json`."
        )
    return text


def _experts(config: MiniGPT3DConfig) -> str:
    if not config.use_query_experts:
        return "The Q-Former has one set of queries."
    return (
        f"A router picks {config.router_top_k} of {config.num_query_experts} sets of queries for each cloud "
        f"({code(f'router={config.router!r}')})."
    )
