"""Write the card of a converted ACT checkpoint."""

import os
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.conversions.act import KINDS
from hf_any3d.conversions.act.datasets import TrainedOn
from hf_any3d.conversions.model_cards import CONVERTED, write_card
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.pretrained_parts.sources import file_digest
from hf_any3d.utils.markdown import code, inline

# Settings that only the released programs use.
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


def write_act_card(
    directory: Path,
    title: str,
    checkpoint: Path,
    kind: str,
    model: PreTrainedModel,
    trained_on: TrainedOn | None,
    teacher: str | os.PathLike | None,
) -> None:
    """Write the card of a converted ACT checkpoint."""
    config = model.config
    autoencoder = getattr(model, "autoencoder", model if kind == "dvae" else None)
    on_hub = None if teacher is None or os.path.isdir(teacher) else os.fspath(teacher)
    labels = f"{config.num_labels} labels"
    labels += f" of {inline(trained_on.title)}" if trained_on else ", whose names are not known"
    reported = ""
    if trained_on and trained_on.reported:
        reported = f"The authors report {trained_on.reported}, of the best epoch on the test set. "
    left_out = "; `ACT_encoder.lm_head`, which nothing reads, is left out" if kind == "pretrain" else ""
    compared = ""
    if teacher is not None:
        compared = f" The teacher's layers equal those of {code(on_hub) if on_hub else 'the given encoder'}."
    remarks = [trained_on.remark] if trained_on and trained_on.remark else []
    configs, teacher_text = [config], ""
    if autoencoder is not None:
        teacher_text = " It has no teacher."
        if autoencoder.encoder is not None:
            encoder = code(autoencoder.config.encoder_config.model_type)
            stored = "; its layers are stored here, without its embeddings, which nothing reads"
            named = autoencoder.config.encoder_name_or_path is not None
            teacher_text = f" Its frozen teacher is a {encoder} encoder{'' if named else stored}."
        configs.append(autoencoder.config)
        remarks.append(
            "Codes are drawn with noise in eval mode too, so results for the same cloud differ from call to call; "
            "`noise_in_eval=False` turns this off."
        )
        if autoencoder.config.attention_axis == "batch":
            remarks.append("**Features depend on the other clouds of a batch.**")
    write_card(
        directory,
        title,
        Subject.from_model(model),
        f"This is a checkpoint of the programs that the authors released, {KINDS[kind].described}, {CONVERTED} "
        f"(kind {code(kind)}).{teacher_text}",
        {
            "What it computes": "The released program, with the quirks that its weights were trained with: "
            f"{', '.join(map(code, _quirks(configs)))}. The defaults of `{type(config).__name__}` are the sound ones."
            f"{''.join(f' {remark}' for remark in remarks)}",
            "Quality": f"{reported}The converted model was not evaluated.",
            "Source": f"{code(checkpoint.name)}, sha256:{file_digest(checkpoint)}. Every tensor of it is accounted "
            f"for{left_out}. The number of patches ({config.num_groups} of {config.group_size} points) and that of "
            f"attention heads cannot be read from a checkpoint; unless given, they are the published ones.{compared}",
        },
        intro=_ACT_WHAT[kind].format(labels=labels),
        base_model=on_hub,
    )


def _quirks(configs: list[PreTrainedConfig]) -> list[str]:
    """Return the settings of configs that are not the sound defaults, each once."""
    sound = [type(config)() for config in configs]
    settings = [
        f"{name}={getattr(config, name)!r}"
        for config, default in zip(configs, sound, strict=True)
        for name in _ACT_QUIRKS
        if hasattr(config, name) and getattr(config, name) != getattr(default, name)
    ]
    return list(dict.fromkeys(settings))
