"""Arguments of training programs, from a command line, from a JSON or YAML file, or from both."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

from hf_any3d.training.schedules import EpochCosine

FILE_TYPES = (".json", ".yaml", ".yml")
BASES = "extends"
# YAML 1.1 reads 1e-3, which has no dot, as text.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of names and values.

    A file may name another one, or a list of them, under `extends`, by paths from its own folder. It starts from
    their values, later files of the list winning over earlier ones, and its own values win over all of them.
    Mappings are merged key by key; everything else, lists too, is replaced.

    Raises:
        ValueError: A file that is no mapping, or that stands on itself.
        FileNotFoundError: No such file.
    """
    return _read(path, ())


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of two mappings; where both have one, that of `above`, and of mappings in both, their merger."""
    both = {key: merge(below[key], value) for key, value in above.items() if _are_mappings(below.get(key), value)}
    return {**below, **above, **both}


def numbers(value: Any) -> Any:
    """Turn text such as 1e-3 into the number it stands for, also inside lists and mappings."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in readers:
        raise ValueError(f"{path}: {BASES!r} leads back to this file; expected files that end somewhere")
    values = _parse(path)
    bases = values.pop(BASES, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: {BASES!r} is {bases!r}; expected the path of a file or a list of paths")
    below: dict[str, Any] = {}
    for base in bases:
        file = path.parent / base
        if not file.is_file():
            raise FileNotFoundError(f"{path}: {BASES!r} names {base!r}, but there is no file {file}")
        below = merge(below, _read(file, (*readers, path.resolve())))
    return merge(below, values)


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}; expected names and values of arguments")
    return values


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def parse_arguments(
    dataclass_types: Iterable[type], argv: Sequence[str], *, others_in_file: bool = False
) -> tuple[Any, ...]:
    """Fill dataclasses of arguments.

    Args:
        dataclass_types: The dataclasses, as `HfArgumentParser` takes them.
        argv: The words behind the program's name. A first one that ends in .json, .yaml or .yml is a file of
            arguments, see `read_settings`; words behind it win over the file. JSON objects among them are merged
            with the file's: `recipe.yaml --dataset_options '{"fold": 3}'` leaves the other options as they are.
        others_in_file: Pass over what a file holds for other dataclasses.

    Returns:
        An object of each class.

    Raises:
        ValueError: A file that is no mapping, or that has unknown arguments.
        FileNotFoundError: No such file.
    """
    parser = HfArgumentParser(tuple(dataclass_types))
    if not argv or not argv[0].endswith(FILE_TYPES):
        return parser.parse_args_into_dataclasses(list(argv))
    path = Path(argv[0])
    texts = {name for kind in parser.dataclass_types for name in _text_fields(kind)}
    values = {
        name: value if name in texts and isinstance(value, str) else numbers(value)
        for name, value in read_settings(path).items()
    }
    known = {field.name for kind in parser.dataclass_types for field in fields(kind) if field.init}
    if others_in_file:
        values = {name: value for name, value in values.items() if name in known}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path}: no program argument is called {', '.join(map(repr, unknown))}")
    return parser.parse_dict(_with_words(values, parser, argv[1:]))


def json_mapping(value: str | dict | None, name: str) -> dict[str, Any]:
    """A mapping from the JSON text of a command line, or from what a file gives.

    Raises:
        ValueError: Anything else; `name` is the argument's.
    """
    try:
        value = json.loads(value) if isinstance(value, str) else value or {}
    except ValueError as error:
        raise ValueError(f"--{name} {value!r} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"--{name} {value!r}; expected a JSON object such as '{{\"key\": 1}}'")
    return value


def _with_words(values: dict[str, Any], parser: HfArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    # Without defaults the namespace holds what was said, and nothing else.
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    said = vars(parser.parse_args(list(words)))
    for name, value in said.items():
        if isinstance(values.get(name), dict) and isinstance(value, str):
            value = merge(values[name], json_mapping(value, name))
        values = {**values, name: value}
    return values


def _text_fields(kind: type) -> list[str]:
    hints = get_type_hints(kind)
    return [field.name for field in fields(kind) if str in (hints[field.name], *get_args(hints[field.name]))]


logger = logging.getLogger(__name__)
DECAY_RULES = ("trainer", "matrices")


@dataclass
class ModelArguments:
    """What is trained around which encoder."""

    encoder_name_or_path: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Hub name or directory of a pretrained text, vision or audio encoder; it stays frozen."},
    )
    tower: str | None = field(
        default=None, metadata={"help": "Encoder of a composite checkpoint: text, vision or audio."}
    )
    encoder_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the encoder."})
    num_layers: int | None = field(default=None, metadata={"help": "Use the encoder's first layers only."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, …"})
    encoder_attention_dropout: float = field(
        default=0.0, metadata={"help": "Share of the frozen attention's weights that is dropped in training."}
    )
    num_tokens: int | None = field(default=None, metadata={"help": "Tokens that a cloud becomes."})
    tokenizer_neighbors: int | None = field(default=None, metadata={"help": "Points in a neighbourhood."})
    model_config: dict | str | None = field(
        default=None, metadata={"help": "JSON object with any further settings of the model's config."}
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        for name in ("num_tokens", "tokenizer_neighbors"):
            if getattr(self, name) is not None:
                self.model_config[name] = getattr(self, name)


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset_name: str = field(
        default="shapes",
        metadata={"help": "Name in the catalogue (shapes, folder, parquet, …) or of a hub repository (owner/name)."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Where the files of the dataset lie."})
    dataset_options: dict | str | None = field(
        default=None, metadata={"help": "JSON object with further options of the dataset, such as a variant."}
    )
    train_file: str | None = field(default=None, metadata={"help": "Parquet file, instead of a dataset's name."})
    validation_file: str | None = field(default=None, metadata={"help": "Parquet file that chooses the weights."})
    test_file: str | None = field(default=None, metadata={"help": "Parquet file that only reports."})
    train_splits: list[str] = field(
        default_factory=lambda: ["train"],
        metadata={"help": "Splits that are trained on together; train must be one, and none of them judges."},
    )
    validation_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of the training split to choose the weights by, where there is no validation split."},
    )
    validation_seed: int = field(
        default=0, metadata={"help": "Draws that share; apart from --seed, so that runs choose by the same clouds."}
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Rows with equal values stay together; by default the column 'group', if any."},
    )
    num_points: int = field(default=1024, metadata={"help": "Points of a cloud that the model sees."})
    features: list[str] = field(
        default_factory=lambda: ["xyz"], metadata={"help": "Channels of a point: xyz, then any of rgb and normals."}
    )
    up_axis: str = field(default="y", metadata={"help": "The axis that points up; rotations turn about it."})
    augment: list[str] = field(
        default_factory=list,
        metadata={"help": "Transforms of training clouds in order, such as: scale rotate:axis=z,limit=0.5 jitter."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Judge on the first so many rows."})

    def __post_init__(self):
        self.dataset_options = json_mapping(self.dataset_options, "dataset_options")
        if self.train_file is None and (self.validation_file or self.test_file):
            raise ValueError("--validation_file and --test_file need --train_file")
        if self.train_file is not None and self.data_dir is not None:
            raise ValueError(f"--data_dir {self.data_dir} with --train_file, which is read in its place; give one")
        if "train" not in self.train_splits:
            raise ValueError(f"--train_splits {' '.join(self.train_splits)}; expected 'train' among them")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"--validation_fraction {self.validation_fraction}; expected at least 0 and less than 1")


@dataclass
class AdapterArguments:
    """Which PEFT method adapts the encoder or the pretrained point transformer."""

    peft: str | None = field(
        default=None,
        metadata={
            "help": "PEFT method: guided_adapter, lora, ia3, …; none trains tokenizer and head, full all. Left out: "
            "guided_adapter around a frozen encoder, none for a point transformer."
        },
    )
    peft_config: dict | str | None = field(default=None, metadata={"help": "JSON object with settings of the method."})

    def __post_init__(self):
        self.peft_config = json_mapping(self.peft_config, "peft_config")


@dataclass
class PointTrainingArguments(TrainingArguments):
    """Trainer's own arguments, with defaults for point clouds."""

    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the trained model, for its card, as the hub writes it."},
    )
    remove_unused_columns: bool = field(default=False)
    eval_strategy: str = field(default="epoch")
    save_strategy: str = field(default="epoch")
    save_total_limit: int | None = field(default=2)
    load_best_model_at_end: bool = field(default=True)
    metric_for_best_model: str | None = field(default="accuracy")
    logging_steps: float = field(default=20)
    ddp_find_unused_parameters: bool | None = field(default=False)
    per_device_train_batch_size: int = field(default=16)
    per_device_eval_batch_size: int = field(default=32)
    learning_rate: float = field(default=1e-3)
    weight_decay: float = field(default=0.05)
    warmup_steps: float = field(default=0.05)
    lr_scheduler_type: str = field(default="cosine")
    num_train_epochs: float = field(default=40)
    two_steps_per_batch: bool = field(
        default=False,
        metadata={"help": "Step twice with each gradient, first unclipped, as ACT's segmentation programs do."},
    )
    epoch_cosine: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON object with settings of EpochCosine (warmup_epochs, warmup_lr, min_lr, repeat_first, "
            "epochs): a rate for each epoch instead of lr_scheduler_type. epochs are num_train_epochs unless named."
        },
    )
    weight_decay_on: str = field(
        default="trainer",
        metadata={
            "help": "What decays: trainer (no biases, norms, vectors and class tokens) or matrices (class tokens too, "
            "as in the released programs)."
        },
    )
    no_weight_decay: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions of parameters that do not decay; needs weight_decay_on matrices."},
    )

    def __post_init__(self):
        for name in ("eval_strategy", "save_strategy"):
            # Both are on by default, and Trainer refuses the one without the other.
            if self.load_best_model_at_end and getattr(self, name) == "no":
                logger.warning("--%s no: no checkpoint can be chosen, so the weights of the last step are kept", name)
                self.load_best_model_at_end = False
        super().__post_init__()
        self.epoch_cosine = json_mapping(self.epoch_cosine, "epoch_cosine") or None
        if self.weight_decay_on not in DECAY_RULES:
            raise ValueError(f"--weight_decay_on {self.weight_decay_on!r}; expected one of {', '.join(DECAY_RULES)}")
        if self.two_steps_per_batch and self.fp16:
            raise ValueError("--two_steps_per_batch with --fp16, whose gradients are scaled; expected --bf16")
        if self.no_weight_decay and self.weight_decay_on != "matrices":
            raise ValueError("--no_weight_decay needs --weight_decay_on matrices")
        if self.epoch_cosine is not None:
            known = {setting.name for setting in fields(EpochCosine)}
            if unknown := sorted(set(self.epoch_cosine) - known):
                raise ValueError(f"--epoch_cosine has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
            self.epoch_cosine = asdict(EpochCosine(**{"epochs": self.num_train_epochs, **self.epoch_cosine}))

    @property
    def epoch_schedule(self) -> EpochCosine | None:
        """The schedule that `epoch_cosine` tells, if it tells one."""
        return None if self.epoch_cosine is None else EpochCosine(**self.epoch_cosine)
