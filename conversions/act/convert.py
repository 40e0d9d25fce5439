"""Convert a released ACT checkpoint of any stage into a directory with model, processor and card."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from hf_any3d.conversions.act import KINDS, convert_act_state_dict, names as sizes, teacher_of
from hf_any3d.conversions.act.datasets import DATASETS, NONE, UNLABELED, TrainedOn, find_dataset
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.common_layers import below, student_sizes
from hf_any3d.conversions.origin import are_published, name_labels, stated_classes
from hf_any3d.conversions.renaming import count_of, heads_of
from hf_any3d.conversions.saving import CONVERTED, check_encoder, check_frozen, facts_of, write_card
from hf_any3d.conversions.tensor_checks import account
from hf_any3d.data.options import one_of
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.act import (
    ActAutoencoder,
    ActAutoencoderConfig,
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActForSemanticSegmentation,
    PointBERTForPartSegmentation,
    PointBERTForPreTraining,
    PointMAEForPreTraining,
)
from hf_any3d.modeling.act.configuration_act import PointTransformerConfig
from hf_any3d.modeling.encoders import encoder_settings, load_encoder
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.utils.atomic_files import new_directory
from hf_any3d.utils.markdown import code, inline

_State = Mapping[str, torch.Tensor]
# Where a checkpoint's state dict is; segmentation programs use the second key.
_KEYS = ("base_model", "model_state_dict")
_AUTOENCODER = "autoencoder."
_NUM_GROUPS = 64
RELEASED = {"sampling_min_squared_norm": 1e-3}
_RELEASED_PRETRAINING: dict[str, Any] = {
    "noisy_targets": True,
    "teacher_in_training_mode": True,
    "encode_visible_only": False,
}
# The parts of a teacher before and after its layers: no checkpoint holds them, and point tokens skip them.
_UNUSED = ("embeddings.", "pooler.")
_TASK_MODELS = {
    "cls": ActForPointCloudClassification,
    "partseg": ActForPartSegmentation,
    "semseg": ActForSemanticSegmentation,
    "point_bert_cls": ActForPointCloudClassification,
    "point_bert_partseg": PointBERTForPartSegmentation,
}
# Kinds of Point-BERT -> those of ACT that are trained on the same datasets.
_TASKS = {"point_bert_cls": "cls", "point_bert_partseg": "partseg"}
# Point-BERT's classifiers have a patch for so many points, whatever the dataset, and these many points by default.
_POINTS_PER_GROUP, _NUM_POINTS = 16, 1024
# Of the published settings of Point-MAE and Point-BERT.
_PUBLISHED_HEADS = 6
# A class token that a file lacks is drawn with this seed.
_SEED = 0
# Settings that only the released programs use.
_ACT_QUIRKS = (
    "sampling_min_squared_norm position_injection use_input_norm noisy_targets teacher_in_training_mode "
    "encode_visible_only"
).split()
_ACT_WHAT = {
    "dvae": "Encodes a 3D point cloud as discrete codes and reconstructs it from them.",
    "pretrain": "A point transformer pretrained to predict a frozen teacher's features of masked patches.",
    "cls": "Classifies 3D point clouds: {labels}.",
    "partseg": "Segments 3D point clouds of objects into parts: {labels}.",
    "point_mae": "A point transformer pretrained to predict the points of masked patches.",
    "point_bert": "A point transformer pretrained to predict discrete codes of masked patches.",
    "semseg": "Segments 3D point clouds of rooms into objects: {labels}.",
}


@dataclass(frozen=True)
class Teacher:
    """One kind of frozen teacher of the released programs.

    Args:
        tower: Which tower, for checkpoints with several.
        config: Required values of its config.
        layer_norm_eps: Of all its norms in the released programs.
        no_embeddings: Settings that make the embeddings, which no checkpoint holds, as small as possible.
        settings: Values of `ActAutoencoderConfig` in the released programs.
        released: Their quirks, the group `released` of that config.
    """

    tower: str | None
    config: Mapping[str, Any]
    layer_norm_eps: float
    no_embeddings: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    released: Mapping[str, Any] = field(default_factory=dict)


_NO_IMAGE = {"image_size": 1, "patch_size": 1, "num_channels": 1}
TEACHERS = {
    "vit": Teacher(None, {"hidden_act": "gelu"}, 1e-6, _NO_IMAGE),
    "clip_vision_model": Teacher("vision", {"hidden_act": "quick_gelu"}, 1e-5, _NO_IMAGE),
    "bert": Teacher(
        tower=None,
        config={"hidden_act": "gelu"},
        layer_norm_eps=1e-12,
        no_embeddings={"vocab_size": 1, "max_position_embeddings": 1, "type_vocab_size": 1},
        settings={"position_injection": "input", "use_input_norm": False},
        released={"teacher_dropout": True},
    ),
}


@dataclass(frozen=True)
class Choices:
    """Settings that cannot be read from the tensors of a checkpoint; None takes the published value.

    Args:
        num_groups: Patches per cloud.
        group_size: Points per patch.
        num_attention_heads: Heads of the student.
        dataset: The dataset that it was fine-tuned on, one of `DATASETS`, or "none" for labels that are numbers only.
        num_points: Points per cloud that the processor returns.
        teacher: Directory or hub name of the frozen teacher; None stores the one in the checkpoint.
        revision: Branch, tag or commit of the teacher on the hub.
        store_encoder: Store a named teacher in the directory too.
    """

    num_groups: int | None = None
    group_size: int | None = None
    num_attention_heads: int | None = None
    dataset: str | None = None
    num_points: int | None = None
    teacher: str | os.PathLike | None = None
    revision: str | None = None
    store_encoder: bool = False


def convert_act(checkpoint: str | os.PathLike, kind: str, output: str | os.PathLike, **choices: Any) -> dict[str, Any]:
    """Convert a checkpoint of one of ACT's programs.

    Checkpoints of stages I and II hold the layers of the frozen teacher. If a teacher is named, they are compared with
    its own, and only its name, revision and checksum are stored; otherwise they are stored in the directory.

    Args:
        checkpoint: The authors' file.
        kind: "dvae", "pretrain", "cls", "partseg" or "semseg"; of Point-MAE "point_mae"; of Point-BERT
            "point_bert", "point_bert_cls" or "point_bert_partseg".
        output: Directory to create.
        **choices: Fields of `Choices`.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `teacher`, `bytes`.

        Where something was drawn, or left out, also `fresh` and `left_out`.

    Raises:
        ValueError: The checkpoint has tensors of no known part, or lacks some; names them.
        FileExistsError: `output` is there and not empty.
        FileNotFoundError: There is no such checkpoint.
    """
    chosen = Choices(**choices)
    facts: dict[str, Any] = {"teacher": None}
    with errors_about(checkpoint):
        one_of("kind", kind, KINDS)
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint, _KEYS)
        teacher = teacher_of(original)
        with errors_about(_taken_for(checkpoint, kind)):
            state = convert_act_state_dict(kind, original)
            if kind == "point_mae":
                state |= _drawn_class_token(state)
                facts["fresh"] = ["the class token and its position"]
            if kind == "point_bert_cls":
                cut = _without_spare_rows(state, chosen)
                if cut:
                    facts["left_out"] = [f"{cut} rows of the last layer, which are of no class"]
            # Sizes and settings first; no weight is copied before all tensors are accounted for.
            model, trained_on = build_act(checkpoint, kind, state, teacher, chosen)
        fill_act(model, state, teacher_is_stored=chosen.teacher is None)
        model.save_pretrained(directory)
        processor = dict(trained_on.processor if trained_on else UNLABELED)
        if chosen.num_points is not None or kind == "point_bert_cls":
            processor["num_points"] = chosen.num_points or _NUM_POINTS
        PointCloudProcessor(**processor).save_pretrained(directory)
        write_act_card(directory, Path(output).name, Path(checkpoint), kind, model, trained_on, chosen.teacher, facts)
    if teacher is not None:
        facts["teacher"] = os.fspath(chosen.teacher or "kept in the directory")
    return facts_of(output, model) | facts


def _taken_for(checkpoint: str | os.PathLike, kind: str) -> str:
    """Return the beginning of errors about a file, whose tensors may be those of another kind."""
    return f"{os.fspath(checkpoint)}: taken for {KINDS[kind].described}"


def _drawn_class_token(state: _State) -> dict[str, torch.Tensor]:
    """Draw the class token and its position, which Point-MAE adds after its pretraining."""
    generator = torch.Generator().manual_seed(_SEED)
    width = state["act.norm.weight"].shape[0]
    drawn = {}
    for name in ("act.class_token.token", "act.class_token.position"):
        drawn[name] = torch.nn.init.trunc_normal_(torch.empty(width), std=0.02, generator=generator)
    return drawn


def _without_spare_rows(state: dict[str, torch.Tensor], choices: Choices) -> int:
    """Cut a head of Point-BERT to the classes that are stated, and return how many rows that are.

    All its released classifiers have 40 rows; with fewer classes, as of ScanObjectNN, the others were never trained on
    a cloud.
    """
    classes = stated_classes()
    if classes is None and choices.dataset in DATASETS:
        classes = DATASETS[choices.dataset].labels
    rows = state["classifier.out.weight"].shape[0]
    if classes is None or len(classes) >= rows:
        return 0
    for name in ("classifier.out.weight", "classifier.out.bias"):
        state[name] = state[name][: len(classes)]
    return rows - len(classes)


def build_act(
    checkpoint: str | os.PathLike,
    kind: str,
    state: _State,
    teacher: str | None,
    choices: Choices,
    settings: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, TrainedOn | None]:
    """Build the model of a state dict, uninitialized but for a named teacher; sizes are checked before allocation."""
    source = _taken_for(checkpoint, kind)
    dataset = None
    encoder = None
    model_class: Any
    config: Any
    if kind == "dvae":
        model_class = ActAutoencoder
        config, encoder = _autoencoder_config(source, state, teacher, choices)
    elif kind == "pretrain":
        model_class = ActForPreTraining
        tensors = below(state, _AUTOENCODER)
        # A checkpoint of pretraining holds the whole autoencoder, whose patches are the student's too.
        autoencoder, encoder = _autoencoder_config(source, tensors, teacher, choices)
        config = ActConfig(
            autoencoder_config=autoencoder,
            num_groups=autoencoder.num_groups,
            group_size=autoencoder.group_size,
            decoder_num_hidden_layers=count_of(state, r"decoder\.layers\.(\d+)\."),
            class_token_loss="decoder_class_position" in state,
            feature_head_width=state["feature_head.0.weight"].shape[0],
            **student_settings(state, choices),
            **_RELEASED_PRETRAINING,
        )
    elif kind == "point_mae":
        model_class = PointMAEForPreTraining
        config = ActConfig(
            num_groups=choices.num_groups or _NUM_GROUPS,
            # Three coordinates for each point of a patch.
            group_size=state["prediction_head.weight"].shape[0] // 3,
            decoder_num_hidden_layers=count_of(state, r"decoder\.layers\.(\d+)\."),
            mask_ratio=0.6,
            encode_visible_only=False,
            **student_settings(state, choices, _PUBLISHED_HEADS),
        )
    elif kind == "point_bert":
        model_class = PointBERTForPreTraining
        autoencoder, _ = _autoencoder_config(source, below(state, _AUTOENCODER), None, choices)
        config = ActConfig(
            autoencoder_config=autoencoder,
            num_groups=autoencoder.num_groups,
            group_size=autoencoder.group_size,
            feature_head_width=state["feature_head.0.weight"].shape[0],
            contrast_queue_size=state["queue"].shape[1],
            teacher_in_training_mode=True,
            # The head of its classifiers, which training starts with.
            head_widths=[256],
            head_norm=False,
            **student_settings(state, choices, _PUBLISHED_HEADS),
        )
    else:
        model_class = _TASK_MODELS[kind]
        config, dataset = task_config(checkpoint, kind, state, choices, settings or {})
    # Without memory, as sizes that a file implies can be anything.
    with torch.device("meta"), no_init_weights():
        expected = model_class(config).state_dict()
    # The embeddings of a teacher are in our model, but in no file: point tokens do not pass them.
    for name in _unused_names(expected):
        del expected[name]
    account(source, state, expected)
    with no_init_weights():
        # All weights are replaced afterwards, except for those of a named teacher, which is passed initialized.
        if kind == "pretrain":
            encoder = ActAutoencoder(config.autoencoder_config, encoder)
        if encoder is None:
            model = model_class(config)
        else:
            model = model_class(config, encoder)
    return model, dataset


def _autoencoder_config(
    checkpoint: str | os.PathLike, state: _State, teacher: str | None, choices: Choices
) -> tuple[ActAutoencoderConfig, PreTrainedModel | None]:
    frozen = below(state, "encoder.")
    shapes = sizes.autoencoder_sizes(state)
    # What the released program computes, in evaluation too: noise on the codes' scores.
    config_kwargs: dict[str, Any] = shapes | RELEASED
    released: dict[str, Any] = {"noise_in_eval": True}
    config_kwargs["released"] = released
    config_kwargs["group_size"] = choices.group_size or shapes["group_size"]
    # No tensor depends on the number of patches.
    config_kwargs["num_groups"] = choices.num_groups or _NUM_GROUPS
    if teacher is None:
        if choices.teacher is not None:
            raise ValueError(f"teacher={os.fspath(choices.teacher)!r}; the checkpoint holds none")
        return ActAutoencoderConfig(**config_kwargs), None
    program = TEACHERS[teacher]
    # Quirks of the programs for one kind of teacher
    config_kwargs |= program.settings
    released |= program.released
    # That program gives its layers clouds first, where they expect tokens first.
    if teacher == "clip_vision_model" and shapes["prompt_depth"] == "deep":
        released["attention_axis"] = "batch"
    # Without prompts the programs run the teacher without a gradient.
    if not shapes["num_prompts"]:
        released["detach_teacher"] = True
    if choices.teacher is not None:
        named, encoder = _named_teacher(checkpoint, teacher, frozen, choices.teacher, choices.revision)
        if choices.store_encoder:
            named.pop("parts", None)  # an encoder without a name is saved with the model
        return ActAutoencoderConfig(**config_kwargs | named), encoder
    # Without a name, the teacher is described by its layers alone and stored with the model.
    of_teacher = sizes.teacher_sizes(frozen)
    config_kwargs["encoder_config"] = AutoConfig.for_model(
        teacher,
        **of_teacher,
        **program.config,
        **program.no_embeddings,
        num_attention_heads=heads_of(of_teacher["hidden_size"]),
        layer_norm_eps=program.layer_norm_eps,
    )
    return ActAutoencoderConfig(**config_kwargs), None


def _named_teacher(
    checkpoint: str | os.PathLike, kind: str, frozen: _State, name: str | os.PathLike, revision: str | None
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Open a public encoder, as deep as the teacher in a checkpoint; compare the two, and return config fields too."""
    teacher = TEACHERS[kind]
    # Cut to the depth of the copy, as some programs use the first layers alone.
    config_kwargs = encoder_settings(name, teacher.tower, revision, sizes.teacher_sizes(frozen)["num_hidden_layers"])
    config = config_kwargs["encoder_config"]
    check_encoder(name, config, teacher.config)
    # The released programs built the teacher with this epsilon, whatever its own checkpoint says.
    config.layer_norm_eps = teacher.layer_norm_eps
    encoder = load_encoder(ActAutoencoderConfig(**config_kwargs))
    # Of the teacher, a checkpoint holds only the layers that point tokens pass.
    expected = {key: value for key, value in encoder.state_dict().items() if not key.startswith(_UNUSED)}
    check_frozen(checkpoint, os.fspath(name), expected, frozen, "--teacher")
    return config_kwargs, encoder


def task_config(
    checkpoint: str | os.PathLike,
    kind: str,
    state: _State,
    choices: Choices,
    further: Mapping[str, Any],
    config_class: type[PointTransformerConfig] = ActConfig,
) -> tuple[Any, TrainedOn | None]:
    """Return the config of a classifier or segmentation model, with `further` settings, and its dataset."""
    task = _TASKS.get(kind, kind)
    is_bert = kind in ("point_bert_cls", "point_bert_partseg")
    if task == "cls":
        last = "classifier.out.weight"
    elif is_bert:
        last = "segmenter.out.weight"
    else:
        last = "segmenter.head.out.weight"
    num_labels = state[last].shape[0]
    dataset_name = choices.dataset
    if kind == "point_bert_cls" and dataset_name is None:
        # Its heads have 40 rows for any number of classes.
        dataset_name = NONE
    dataset = find_dataset(task, num_labels, dataset_name)
    head_settings = _head_settings(kind, state)
    config_kwargs = student_settings(state, choices) | head_settings
    if choices.num_groups is not None:
        config_kwargs["num_groups"] = choices.num_groups
    elif kind == "point_bert_cls":
        config_kwargs["num_groups"] = (choices.num_points or _NUM_POINTS) // _POINTS_PER_GROUP
    elif dataset is not None:
        config_kwargs["num_groups"] = dataset.num_groups
    else:
        # A guess would give other features without an error.
        raise ValueError(
            f"{num_labels} labels are of no dataset of the released programs, so the number of patches, which no "
            "tensor shows, is not known; give --num-groups: 64 for ModelNet40, 128 for the others"
        )
    if choices.group_size is not None:
        config_kwargs["group_size"] = choices.group_size
    config_kwargs["num_labels"] = num_labels
    if task == "partseg":
        if is_bert:
            # One channel for each category beside the coordinates.
            count = state["propagation.from_points.weight"].shape[1] - 3
        else:
            count, config_kwargs["category_width"] = state["category_embedding.weight"].shape
        # Tensors do not show which parts a category has, so every category may have all of them.
        config_kwargs["category_parts"] = [list(range(num_labels))] * count
    config = config_class(**config_kwargs | dict(further))
    labels = () if dataset is None else dataset.labels
    is_named = name_labels(config, labels, [Path(checkpoint)], is_stated=choices.dataset is not None)
    if is_named and dataset is not None and dataset.categories:
        config.category_names = list(dataset.categories)
        config.category_parts = [list(parts) for parts in dataset.categories.values()]
    return config, dataset


def _head_settings(kind: str, state: _State) -> dict[str, Any]:
    """Return the settings that the tensors of a head imply."""
    if kind == "point_bert_partseg":
        return {}
    if kind in ("cls", "point_bert_cls"):
        layers = count_of(state, r"classifier\.hidden\.(\d+)\.")
        names = [f"classifier.hidden.{number}.weight" for number in range(layers)]
        return {"head_widths": [state[name].shape[0] for name in names], "head_norm": kind == "cls"}
    # As many layers as the released programs have; others are found when names are compared.
    propagation = ("propagation.from_points.weight", "propagation.out.weight")
    head = ("segmenter.from_points.weight", "segmenter.head.hidden.0.weight")
    return {
        "propagation_widths": [state[name].shape[0] for name in propagation],
        "segmentation_head_widths": [state[name].shape[0] for name in head],
    }


def student_settings(state: _State, choices: Choices, published_heads: int | None = None) -> dict[str, Any]:
    """Return the settings that the tensors of a point transformer, below `act.`, and the choices imply."""
    config_kwargs = student_sizes(below(state, "act."))
    width = config_kwargs["hidden_size"]
    heads = choices.num_attention_heads
    # A start of another width than the published one, with its number of heads.
    if heads is None and published_heads and width % 64 and not width % published_heads:
        heads = published_heads
    heads = heads_of(width, heads)
    return config_kwargs | {"num_attention_heads": heads} | RELEASED


def _unused_names(names: Iterable[str]) -> list[str]:
    """Return the names of a model's tensors that no checkpoint holds."""
    names = list(names)
    for autoencoder in ("", _AUTOENCODER):
        if f"{autoencoder}codebook.weight" in names:
            unused = tuple(f"{autoencoder}encoder.{part}" for part in _UNUSED)
            return [name for name in names if name.startswith(unused)]
    return []


def fill_act(model: PreTrainedModel, state: _State, teacher_is_stored: bool) -> None:
    """Copy the tensors of a state dict into a model, which is set to eval mode."""
    # Its tensors share memory with the parameters, so that copying into them loads the weights.
    weights = model.state_dict()
    if teacher_is_stored:
        # Without a source for them, these are set to zero rather than left random.
        for name in _unused_names(weights):
            weights[name].zero_()
    with torch.no_grad():
        for name, tensor in state.items():
            weights[name].copy_(tensor)
    model.eval()


def write_act_card(
    directory: Path,
    title: str,
    checkpoint: Path,
    kind: str,
    model: PreTrainedModel,
    trained_on: TrainedOn | None,
    teacher: str | os.PathLike | None,
    facts: Mapping[str, Any],
) -> None:
    """Write the card of a converted ACT checkpoint."""
    config = model.config
    autoencoder = model if kind == "dvae" else getattr(model, "autoencoder", None)
    on_hub = None
    # A directory of this machine is of no use on a card.
    if teacher is not None and not os.path.isdir(teacher):
        on_hub = os.fspath(teacher)
    labels = f"{config.num_labels} labels"
    reported = ""
    remarks = []
    if trained_on is not None and tuple(config.id2label.values()) == trained_on.labels:
        labels += f" of {inline(trained_on.title)}"
    elif trained_on is None:
        labels += ", whose names are not known"
    if trained_on is not None:
        # Files with a published name are of other authors, whose figures stand below.
        if trained_on.reported and kind == "cls" and not are_published([checkpoint]):
            reported = (
                f"Of their checkpoints for {inline(trained_on.title)} the authors of ACT report "
                f"{trained_on.reported}, of the best epoch on the test set. "
            )
        if trained_on.remark:
            remarks.append(trained_on.remark)
    quirks = _quirks_of(config)
    teacher_text = ""
    if autoencoder is not None:
        quirks += _quirks_of(autoencoder.config)
    if autoencoder is not None and kind != "point_bert":
        teacher_text = _teacher_text(autoencoder)
        remarks += _code_remarks(autoencoder)
    if kind == "point_mae":
        remarks.append(
            "Point-MAE is pretrained without a class token: token and position here were drawn with a fixed seed, and "
            "are there to be trained with a head. Features that contain them are not Point-MAE's; "
            "`use_class_token=False` opens the model without them."
        )
    left_out = ""
    if kind == "pretrain":
        left_out = "; `ACT_encoder.lm_head`, which nothing reads, is left out"
    if facts.get("left_out"):
        left_out = f"; left out are {facts['left_out'][0]}"
    compared = ""
    if teacher is not None:
        given = code(on_hub) if on_hub else "the given encoder"
        compared = f" The teacher's layers equal those of {given}."
    # A student and its autoencoder have some in common.
    all_quirks = ", ".join(dict.fromkeys(quirks))
    defaults = f"The defaults of `{type(config).__name__}` are the sound ones."
    write_card(
        directory,
        title,
        Subject.from_model(model),
        f"This is a checkpoint in the layout of the programs that the authors released, {KINDS[kind].described}, "
        f"{CONVERTED} "
        f"(kind {code(kind)}).{teacher_text}",
        {
            "What it computes": "The released program, with the quirks that its weights were trained with: "
            f"{all_quirks}. {' '.join([defaults, *remarks])}",
            "Quality": f"{reported}The converted model was not evaluated.",
            "Source": f"{code(checkpoint.name)}, sha256:{file_digest(checkpoint)}. Every tensor of it is accounted "
            f"for{left_out}. The number of patches ({config.num_groups} of {config.group_size} points) and that of "
            f"attention heads cannot be read from a checkpoint; unless given, they are the published ones.{compared}",
        },
        files=[checkpoint],
        intro=_ACT_WHAT[_TASKS.get(kind, kind)].format(labels=labels),
        base_model=on_hub,
    )


def _teacher_text(autoencoder: ActAutoencoder) -> str:
    """Describe the frozen teacher of an autoencoder, for its card."""
    if autoencoder.encoder is None:
        return " It has no teacher."
    encoder = code(autoencoder.config.encoder_config.model_type)
    stored = ""
    if autoencoder.config.encoder_name_or_path is None:
        stored = "; its layers are stored here, without its embeddings, which nothing reads"
    return f" Its frozen teacher is a {encoder} encoder{stored}."


def _code_remarks(autoencoder: ActAutoencoder) -> list[str]:
    """Return the remarks of a card about an autoencoder's codes and features."""
    remarks = [
        "Codes are drawn with noise in eval mode too, so results for the same cloud differ from call to call; "
        "`config.released.noise_in_eval = False` turns this off."
    ]
    if autoencoder.config.released.attention_axis == "batch":
        remarks.append("**Features depend on the other clouds of a batch.**")
    return remarks


def _quirks_of(config: ActConfig | ActAutoencoderConfig) -> list[str]:
    """Return the settings of the released programs that are not the sound defaults, as code."""
    # What differs from the defaults is a quirk.
    sound = type(config)()
    quirks = {}
    for name in _ACT_QUIRKS:
        if hasattr(config, name) and getattr(config, name) != getattr(sound, name):
            quirks[name] = getattr(config, name)
    if isinstance(config, ActAutoencoderConfig):
        quirks |= config.released.to_dict()
    return [code(f"{name}={value!r}") for name, value in quirks.items()]
