"""A released ACT checkpoint of any stage into a repository of model, processor and card."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from hf_any3d.conversions.act import convert_act_state_dict, sizes, teacher_of
from hf_any3d.conversions.act.datasets import UNLABELLED, TrainedOn, choose_dataset
from hf_any3d.conversions.act.sizes import teacher_sizes
from hf_any3d.conversions.checkpoints import account, read_checkpoint
from hf_any3d.conversions.model_cards import write_act_card
from hf_any3d.conversions.saving import check_frozen, new_directory
from hf_any3d.modeling.act import (
    ActAutoencoder,
    ActAutoencoderConfig,
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActForSemanticSegmentation,
)
from hf_any3d.modeling.encoders import encoder_settings, load_encoder
from hf_any3d.processing import PointCloudProcessor

# What an encoder has in front of its layers and behind them, none of which reads tokens of points.
_UNREAD = ("embeddings.", "pooler.")


@dataclass(frozen=True)
class Teacher:
    """One kind of teacher that the released programs know.

    Args:
        described: What people call it.
        tower: The tower of a checkpoint with several.
        config: What its config must say, and, where it is kept, says.
        layer_norm_eps: Of all its norms in the released programs.
        no_embeddings: Settings that make the embeddings, which no checkpoint holds, as small as can be.
        released: What `ActAutoencoderConfig` sets for it, its accidents included.
    """

    described: str
    tower: str | None
    config: Mapping[str, Any]
    layer_norm_eps: float
    no_embeddings: Mapping[str, Any]
    released: Mapping[str, Any]


_NO_IMAGE = {"image_size": 1, "patch_size": 1, "num_channels": 1}
TEACHERS = {
    "vit": Teacher(
        described="a ViT or DeiT",
        tower=None,
        config={"hidden_act": "gelu"},
        layer_norm_eps=1e-6,
        no_embeddings=_NO_IMAGE,
        released={},
    ),
    "clip_vision_model": Teacher(
        described="a CLIP image tower",
        tower="vision",
        config={"hidden_act": "quick_gelu"},
        layer_norm_eps=1e-5,
        no_embeddings=_NO_IMAGE,
        released={},
    ),
    "bert": Teacher(
        described="a BERT",
        tower=None,
        config={"hidden_act": "gelu"},
        layer_norm_eps=1e-12,
        no_embeddings={"vocab_size": 1, "max_position_embeddings": 1, "type_vocab_size": 1},
        released={"position_injection": "input", "use_input_norm": False, "teacher_dropout": True},
    ),
}


def released_settings(kind: str | None, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What the released programs do with a teacher and a sound model would not, as `ActAutoencoderConfig` names it.

    Args:
        kind: `model_type` of the teacher, or None.
        sizes: What `autoencoder_sizes` gave.
    """
    settings = {"sampling_min_squared_norm": 1e-3, "noise_in_eval": True}
    if kind is None:
        return settings
    settings |= TEACHERS[kind].released
    if kind == "clip_vision_model" and sizes["prompt_depth"] == "deep":
        settings["attention_axis"] = "batch"
    if not sizes["num_prompts"]:
        settings["detach_teacher"] = True
    return settings


def kept_teacher(kind: str, frozen: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    """Config of a teacher that stays in the converted repository.

    Args:
        kind: Its `model_type`.
        frozen: Its tensors.

    Raises:
        ValueError: If its width cannot be told from its tensors, or is no multiple of 64, so that the number of heads
            is unknown.
    """
    sizes = teacher_sizes(frozen)
    width = sizes["hidden_size"]
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"its teacher has {width} channels, no multiple of {_HEAD_WIDTH}, so its number of attention heads is "
            "unknown; name the teacher by --teacher"
        )
    teacher = TEACHERS[kind]
    return AutoConfig.for_model(
        kind,
        **sizes,
        **teacher.config,
        **teacher.no_embeddings,
        num_attention_heads=width // _HEAD_WIDTH,
        layer_norm_eps=teacher.layer_norm_eps,
    )


def named_teacher(
    checkpoint: str | os.PathLike,
    kind: str,
    frozen: Mapping[str, torch.Tensor],
    name: str | os.PathLike,
    revision: str | None,
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Open a public encoder, and make sure that it is the teacher in a checkpoint.

    Args:
        checkpoint: The file, for messages.
        kind: `model_type` of the teacher in it.
        frozen: Its tensors.
        name: Directory or hub name of the encoder; of its layers as many are taken as the checkpoint holds.
        revision: Branch, tag or commit on the hub.

    Returns:
        What a config records of the encoder, and the encoder.

    Raises:
        ValueError: If it is another one.
    """
    teacher = TEACHERS[kind]
    settings = encoder_settings(name, teacher.tower, revision, teacher_sizes(frozen)["num_hidden_layers"])
    config = settings["encoder_config"]
    wrong = [
        f"{key}={getattr(config, key, None)!r}, expected {value!r}"
        for key, value in teacher.config.items()
        if getattr(config, key, None) != value
    ]
    if wrong:
        raise ValueError(
            f"encoder {os.fspath(name)!r} ({config.model_type}) does not fit the checkpoint, whose teacher is "
            f"{teacher.described}: it has {'; '.join(wrong)}"
        )
    config.layer_norm_eps = teacher.layer_norm_eps
    encoder = load_encoder(ActAutoencoderConfig(**settings))
    expected = {key: value for key, value in encoder.state_dict().items() if not key.startswith(_UNREAD)}
    check_frozen(checkpoint, os.fspath(name), expected, frozen, "--teacher")
    return settings, encoder


def unread_tensors(names: Mapping[str, Any]) -> list[str]:
    """Those of an encoder's tensors that no checkpoint holds, as nothing reads them."""
    return [name for name in names if name.startswith(_UNREAD)]


_State = Mapping[str, torch.Tensor]
_RELEASED = {"sampling_min_squared_norm": 1e-3}
_RELEASED_PRETRAINING = {"noisy_targets": True, "teacher_in_training_mode": True, "encode_visible_only": False}
_AUTOENCODER = "autoencoder."
_NUM_GROUPS = 64
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Choices:
    """What the tensors of a checkpoint do not tell; None takes what is published.

    Args:
        num_groups: Patches of a cloud.
        group_size: Points of a patch.
        num_attention_heads: Heads of the student.
        dataset: What it was trained on, see `choose_dataset`.
        num_points: Points that the processor gives a cloud.
        teacher: Directory or hub name of the frozen teacher; None keeps the one in the checkpoint.
        revision: Branch, tag or commit of the teacher on the hub.
        store_encoder: Keep the teacher in the repository also where it is named.
    """

    num_groups: int | None = None
    group_size: int | None = None
    num_attention_heads: int | None = None
    dataset: str | None = None
    num_points: int | None = None
    teacher: str | os.PathLike | None = None
    revision: str | None = None
    store_encoder: bool = False


def build(
    checkpoint: str | os.PathLike, kind: str, state: _State, teacher: str | None, choices: Choices
) -> tuple[PreTrainedModel, TrainedOn | None]:
    """Build the model that the tensors belong to; its weights, but for a named teacher's, are still to be filled in.

    Names and shapes are compared before any memory is taken for the model.

    Args:
        checkpoint: The file, for messages.
        kind: One of `KINDS`.
        state: What `convert_act_state_dict` gave.
        teacher: `model_type` of the frozen teacher, or None.
        choices: What the tensors do not tell.

    Raises:
        ValueError: If sizes cannot be told or do not fit together, tensors are missing or left over, or the teacher is
            another one than that named.
    """
    if kind == "dvae":
        config, encoder = _autoencoder(checkpoint, state, teacher, choices)
        _compare(checkpoint, ActAutoencoder, config, state)
        with no_init_weights():
            return ActAutoencoder(config, encoder), None
    if kind == "pretrain":
        return _pretraining(checkpoint, state, teacher, choices), None
    model_class, config, known = _task_model(kind, state, choices)
    _compare(checkpoint, model_class, config, state)
    with no_init_weights():
        return model_class(config), known


def unread_by(names: Iterable[str]) -> list[str]:
    """Those of a model's tensors that no checkpoint holds: what its teacher has in front of and behind its layers."""
    names = list(names)
    encoder = next((f"{part}encoder." for part in ("", _AUTOENCODER) if f"{part}codebook.weight" in names), None)
    if encoder is None:
        return []
    own = {name.removeprefix(encoder): name for name in names if name.startswith(encoder)}
    return [own[name] for name in unread_tensors(own)]


def _compare(
    checkpoint: str | os.PathLike, model_class: type[PreTrainedModel], config: PreTrainedConfig, state: _State
) -> None:
    with torch.device("meta"), no_init_weights():
        expected = model_class(config).state_dict()
    unread = set(unread_by(expected))
    account(checkpoint, state, {name: tensor for name, tensor in expected.items() if name not in unread})


def _autoencoder(
    checkpoint: str | os.PathLike, state: _State, teacher: str | None, choices: Choices
) -> tuple[ActAutoencoderConfig, PreTrainedModel | None]:
    frozen = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    found = sizes.autoencoder_sizes(state)
    if choices.group_size not in (None, found["group_size"]):
        raise ValueError(f"group_size={choices.group_size}; the decoder makes {found['group_size']} points of a patch")
    settings: dict[str, Any] = found | released_settings(teacher, found)
    settings["num_groups"] = choices.num_groups or _NUM_GROUPS
    encoder = None
    if teacher is None and choices.teacher is not None:
        raise ValueError(f"teacher={os.fspath(choices.teacher)!r}; the checkpoint holds none")
    if teacher is not None and choices.teacher is not None:
        named, encoder = named_teacher(checkpoint, teacher, frozen, choices.teacher, choices.revision)
        # Without a name the encoder is saved with the model.
        unnamed = ("parts",) if choices.store_encoder else ()
        settings |= {name: value for name, value in named.items() if name not in unnamed}
    elif teacher is not None:
        settings["encoder_config"] = kept_teacher(teacher, frozen)
    return ActAutoencoderConfig(**settings), encoder


def _pretraining(
    checkpoint: str | os.PathLike, state: _State, teacher: str | None, choices: Choices
) -> ActForPreTraining:
    own = {name.removeprefix(_AUTOENCODER): t for name, t in state.items() if name.startswith(_AUTOENCODER)}
    taught_by, encoder = _autoencoder(checkpoint, own, teacher, choices)
    cut = {name: getattr(taught_by, name) for name in ("num_groups", "group_size")}
    config = ActConfig(
        autoencoder_config=taught_by,
        **_student(state, choices),
        **cut,
        **sizes.pretraining_sizes(state),
        **_RELEASED_PRETRAINING,
    )
    _compare(checkpoint, ActForPreTraining, config, state)
    with no_init_weights():
        return ActForPreTraining(config, ActAutoencoder(taught_by, encoder))


def _task_model(
    kind: str, state: _State, choices: Choices
) -> tuple[type[PreTrainedModel], ActConfig, TrainedOn | None]:
    settings = sizes.classifier_sizes(state) if kind == "cls" else sizes.segmenter_sizes(state)
    num_labels = settings.pop("num_labels")
    known = choose_dataset(kind, choices.dataset, num_labels)
    settings["num_groups"] = choices.num_groups or (known.num_groups if known else _NUM_GROUPS)
    if choices.group_size is not None:
        settings["group_size"] = choices.group_size
    settings |= {"num_labels": num_labels} if known is None else {"id2label": dict(enumerate(known.labels))}
    if kind == "partseg":
        settings |= _categories(state, known, num_labels)
    models = {
        "cls": ActForPointCloudClassification,
        "partseg": ActForPartSegmentation,
        "semseg": ActForSemanticSegmentation,
    }
    return models[kind], ActConfig(**_student(state, choices), **settings), known


def _student(state: _State, choices: Choices) -> dict[str, Any]:
    found = sizes.student_sizes(state)
    heads = choices.num_attention_heads or found["hidden_size"] // _HEAD_WIDTH
    if not heads or found["hidden_size"] % heads:
        raise ValueError(
            f"the number of attention heads is unknown, as hidden_size={found['hidden_size']} is no multiple of "
            f"{heads or _HEAD_WIDTH}; give --num-attention-heads"
        )
    return found | {"num_attention_heads": heads} | _RELEASED


def _categories(state: _State, known: TrainedOn | None, num_labels: int) -> dict[str, Any]:
    found = sizes.category_sizes(state)
    count = found.pop("num_categories")
    if known is None:
        # Which parts a category has is told by names alone.
        return found | {"category_parts": [list(range(num_labels))] * count}
    if len(known.categories) != count:
        raise ValueError(
            f"{known.title} has {len(known.categories)} categories, but the checkpoint {count}; give --dataset none "
            "for labels without names"
        )
    return found | {
        "category_names": list(known.categories),
        "category_parts": [list(parts) for parts in known.categories.values()],
    }


# Segmentation has a key of its own.
_KEYS = ("base_model", "model_state_dict")


def convert_act(
    checkpoint: str | os.PathLike,
    kind: str,
    output: str | os.PathLike,
    **choices: Any,
) -> dict[str, Any]:
    """Convert a checkpoint of one of ACT's programs.

    Checkpoints of stages I and II hold the layers of the frozen teacher. Where a teacher is named, they are compared
    with its own, and only its name, revision and checksum are stored; else they stay in the repository.

    Args:
        checkpoint: The authors' file.
        kind: "dvae", "pretrain", "cls", "partseg" or "semseg".
        output: Directory to make.
        **choices: What the tensors do not tell; see `Choices`.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `teacher`, `bytes`.

    Raises:
        ValueError: The checkpoint cannot be read, is of another kind or does not fit, or the teacher is another one.
        FileNotFoundError: No such checkpoint.
        FileExistsError: `output` exists and is not empty.
    """
    chosen = Choices(**choices)
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint, _KEYS)
        teacher = teacher_of(original)
        try:
            state = convert_act_state_dict(kind, original)
            model, trained_on = build(checkpoint, kind, state, teacher, chosen)
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(f"{checkpoint}: ") else f"{checkpoint}: {text}") from error
        _fill(model, state, kept=chosen.teacher is None)
        model.save_pretrained(directory)
        processor = dict(trained_on.processor if trained_on else UNLABELLED)
        processor |= {} if chosen.num_points is None else {"num_points": chosen.num_points}
        PointCloudProcessor(**processor).save_pretrained(directory)
        write_act_card(directory, Path(output).name, Path(checkpoint), kind, model, trained_on, chosen.teacher)
    files = [file for file in Path(output).rglob("*") if file.is_file()]
    return {
        "output": os.fspath(output),
        "model": type(model).__name__,
        "parameters": model.num_parameters(),
        "teacher": None if teacher is None else os.fspath(chosen.teacher or "kept in the directory"),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _fill(model: PreTrainedModel, state: dict[str, torch.Tensor], kept: bool) -> None:
    """Load tensors into a model; `kept` says that its teacher has no other source."""
    own = model.state_dict()
    if kept:
        # The checkpoint has none, so they are made nothing rather than random numbers.
        for name in unread_by(own):
            own[name].zero_()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    model.eval()
