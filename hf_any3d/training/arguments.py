"""Arguments of the training programs: the dataclasses that they share, and parsing from a command line or a file."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, cast, get_args, get_origin, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg

from hf_any3d.data.fingerprints import is_saved_model, path_fingerprint
from hf_any3d.modeling.config_checks import check_numbers, check_settings
from hf_any3d.registry import MODEL_TYPES
from hf_any3d.training.schedules import EpochCosine

logger = logging.getLogger(__name__)

DECAY_RULES = ("trainer", "matrices", "all")
FILE_TYPES = (".json", ".yaml", ".yml")
CAPTURED = [name for name, kind in MODEL_TYPES.items() if kind.captures_steps]
"""Model types whose training steps `cuda_graphs` captures."""
STARTS = ("model_name_or_path", "encoder_name_or_path")
"""Arguments that name the models that a training starts from."""
_DATA = ("data_dir", "train_file", "validation_file", "test_file")
BASES = "extends"
# Of a file of arguments; the longest recipe of the package has some forty values.
_LARGEST_FILE, _MOST_VALUES, _DEEPEST = 2**18, 10_000, 50
_NAMES_OF_TYPES = {bool: "True or False", int: "a number", float: "a number", list: "a list"}
# Numbers that may not be 0; others may not be negative.
_LEAST = {"copies": 1, "folds": 2, "num_layers": 1, "num_tokens": 1, "tokenizer_neighbors": 1}
_LEAST |= {"max_train_samples": 1}
_POSITIVE = {"strength", "f_score_threshold"}
# YAML 1.1 reads 1e-3, which has no dot, as text.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def argument(default: Any = MISSING, *, help: str, default_factory: Any = MISSING) -> Any:
    """Declare a field with its help text, like `HfArg`, whose type would not fit the field's."""
    return HfArg(default=default, default_factory=default_factory, help=help)


@dataclass
class ModelArguments:
    """The frozen encoder, and the config of the model around it."""

    encoder_name_or_path: str = argument(
        "sentence-transformers/all-MiniLM-L6-v2",
        help="Hub name or directory of a pretrained text, vision or audio encoder; it stays frozen.",
    )
    tower: str | None = argument(None, help="Encoder of a composite checkpoint: text, vision or audio.")
    encoder_revision: str | None = argument(None, help="Branch, tag or commit of the encoder.")
    num_layers: int | None = argument(None, help="Use only the first layers of the encoder.")
    attn_implementation: str | None = argument(None, help="sdpa, eager, flash_attention_2, …")
    encoder_dtype: str | None = argument(
        None,
        help="Dtype of the frozen encoder, float32, bfloat16 or float16; saved with the model. What is trained stays "
        "in float32.",
    )
    encoder_attention_dropout: float = argument(
        0.0, help="Dropout of the frozen encoder's attention weights in training."
    )
    num_tokens: int | None = argument(None, help="Tokens per cloud.")
    tokenizer_neighbors: int | None = argument(None, help="Points per neighborhood.")
    model_config: dict | str | None = argument(
        None, help="JSON object with any further settings of the model's config."
    )

    def __post_init__(self):
        # Short options, such as --num_tokens, win over the same setting in --model_config.
        self.model_config = json_mapping(self.model_config, "model_config")
        for name in ("num_tokens", "tokenizer_neighbors", "encoder_dtype"):
            if getattr(self, name) is not None:
                self.model_config[name] = getattr(self, name)


@dataclass
class DataArguments:
    """The dataset, its splits, and how clouds are prepared."""

    dataset_name: str = argument(
        "shapes", help="Name in the catalog (shapes, folder, parquet, …) or of a hub repository (owner/name)."
    )
    data_dir: str | None = argument(None, help="Directory with the files of the dataset.")
    dataset_options: dict | str | None = argument(
        None, help="JSON object with further options of the dataset, such as a variant."
    )
    train_file: str | None = argument(None, help="Parquet file, instead of a dataset name.")
    validation_file: str | None = argument(None, help="Parquet file to select the weights on.")
    test_file: str | None = argument(None, help="Parquet file that is only evaluated at the end.")
    train_splits: list[str] = argument(
        default_factory=lambda: ["train"],
        help="Splits to train on together; train must be one. None of them is evaluated.",
    )
    validation_fraction: float = argument(
        0.2, help="Share of the training split to select the weights on, if there is no validation split."
    )
    validation_seed: int = argument(
        0, help="Seed of that share; not --seed, so that all runs select on the same clouds."
    )
    group_column: str | None = argument(
        None, help="Column whose equal values stay in one split; by default 'group', if there is one."
    )
    num_points: int = argument(1024, help="Points per cloud.")
    features: list[str] = argument(
        default_factory=lambda: ["xyz"],
        help="Channels per point: xyz, then any of rgb, normals, intensity, ring, "
        "return_number and number_of_returns.",
    )
    up_axis: str = argument("y", help="Axis that points up; rotations are about it.")
    augment: list[str] = argument(
        default_factory=list,
        help="Transforms of training clouds, in order, such as: scale rotate:axis=z,limit=0.5 jitter.",
    )
    max_train_samples: int | None = argument(None, help="Number of training rows, from the first.")
    max_eval_samples: int | None = argument(None, help="Number of evaluated rows, from the first.")

    def __post_init__(self):
        self.dataset_options = json_mapping(self.dataset_options, "dataset_options")
        if self.train_file is None and (self.validation_file or self.test_file):
            raise ValueError("--validation_file and --test_file need --train_file")
        if self.train_file is not None and self.data_dir is not None:
            raise ValueError(f"--data_dir {self.data_dir} with --train_file; give only one of them")
        if "train" not in self.train_splits:
            raise ValueError(f"--train_splits {' '.join(self.train_splits)}; expected 'train' among them")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"--validation_fraction {self.validation_fraction}; expected at least 0 and less than 1")

    @property
    def files(self) -> dict[str, str]:
        """The Parquet file of each split that has one."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in files.items() if file is not None}


@dataclass
class AdapterArguments:
    """The PEFT method that adapts the encoder or the pretrained point transformer."""

    peft: str | None = argument(
        None,
        help="PEFT method: guided_adapter, lora, ia3, …; none trains tokenizer and head, full everything. By "
        "default guided_adapter with a frozen encoder, none for a point transformer.",
    )
    peft_config: dict | str | None = argument(None, help="JSON object with settings of the method.")

    def __post_init__(self):
        self.peft_config = json_mapping(self.peft_config, "peft_config")

    @staticmethod
    def of_another_model(file: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
        """Return the settings of a file that do not apply to the method that the command line requests instead."""
        is_other = "peft" in file and given.get("peft", file["peft"]) != file["peft"]
        return {"peft_config"} if is_other else set()


def _check_restarts() -> None:
    """Refuse restarts of torchrun whose processes would meet in a store that outlives them, which is its default.

    Those of a second attempt read the addresses of the first one there, and fail or wait without end.
    """
    # Both variables are set by torchrun in the processes that it starts.
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true"
    if restarts > 0 and shares_store and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"--max_restarts {restarts}: processes that are started again would read the addresses of those "
            "before them; expected TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment, and torchrun with "
            "--standalone or --rdzv_backend c10d, or accelerate with PET_STANDALONE=1"
        )


@dataclass
class PointTrainingArguments(TrainingArguments):
    """Training arguments, with defaults for point clouds."""

    output_dir: str = argument("trainer_output", help="Directory to write the model and its checkpoints to.")
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    license: str | None = argument(None, help="License in the model card, as the hub writes it.")
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
    rows_per_step: int | None = argument(
        None,
        help="Rows of an optimizer step in all processes together, for runs whose number of processes may change: "
        "sets gradient_accumulation_steps.",
    )
    join_batches: bool = argument(
        True,
        help="In several processes, compute the statistics of batch norms and contrastive losses over the batches of "
        "all of them, so that results do not depend on their number.",
    )
    two_steps_per_batch: bool = argument(
        False, help="Step twice with each gradient, first unclipped, as released segmentation programs do."
    )
    epoch_cosine: dict | str | None = argument(
        None,
        help="JSON object with settings of EpochCosine (warmup_epochs, warmup_lr, min_lr, repeat_first, "
        "by_steps, epochs): one rate per epoch instead of lr_scheduler_type. epochs is num_train_epochs by default.",
    )
    head_epochs: int = argument(
        0, help="Epochs at the start in which the head alone is trained, on weights that are pretrained."
    )
    index_in_workers: bool = argument(
        False,
        help="Sample centers and search neighbors where batches are made, in the workers of "
        "--dataloader_num_workers, instead of in the model (classifiers around a frozen encoder).",
    )
    compile_layers: bool = argument(
        False,
        help="Compile the encoder's layers with their adapters, for GPUs: one of them is compiled in the first step, "
        "which takes up to a minute, and the others run its code. torch_compile compiles the whole model instead.",
    )
    cuda_graphs: bool = argument(
        False,
        help="Capture forward and backward pass of a batch as one CUDA graph and repeat it for batches of its size, "
        f"in one process ({', '.join(CAPTURED)}).",
    )
    weight_decay_on: str = argument(
        "trainer",
        help="Parameters with weight decay: trainer (no biases, norms, vectors and class tokens), matrices "
        "(class tokens too, as in the released programs) or all, as in 3DETR's.",
    )
    no_weight_decay: list[str] = argument(
        default_factory=list,
        help="Regular expressions of parameters without weight decay; needs weight_decay_on matrices.",
    )

    def __post_init__(self):
        _check_restarts()
        for name in ("eval_strategy", "save_strategy"):
            # Both are on by default, and Trainer requires both to load the best weights.
            if self.load_best_model_at_end and getattr(self, name) == "no":
                logger.warning("--%s no: no checkpoint can be selected; the weights of the last step are kept", name)
                self.load_best_model_at_end = False
        super().__post_init__()
        # Torch pins memory for accelerators, and warns in every epoch where there is none.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        self.epoch_cosine = json_mapping(self.epoch_cosine, "epoch_cosine") or None
        check_settings(self, {"weight_decay_on": DECAY_RULES})
        if self.rows_per_step is not None:
            self._accumulate(self.rows_per_step)
        self._check_faster_steps()
        if self.two_steps_per_batch and self.fp16:
            raise ValueError("--two_steps_per_batch with --fp16, which scales gradients; expected --bf16")
        if self.no_weight_decay and self.weight_decay_on != "matrices":
            raise ValueError("--no_weight_decay needs --weight_decay_on matrices")
        if self.epoch_cosine is not None:
            # Stored as plain values, with all defaults filled in, so that checkpoints and reports list what was used.
            self.epoch_cosine = asdict(EpochCosine(**{"epochs": self.num_train_epochs, **self.epoch_cosine}))

    def _accumulate(self, rows_per_step: int) -> None:
        """Accumulate gradients so that an optimizer step has so many rows in all processes together."""
        # Rows of one backward pass in all processes.
        at_once = self.train_batch_size * self.world_size
        if rows_per_step < 1 or rows_per_step % at_once:
            raise ValueError(
                f"--rows_per_step {rows_per_step}; expected a multiple of {at_once}, "
                f"{self.train_batch_size} in each of {self.world_size} processes"
            )
        self.gradient_accumulation_steps = rows_per_step // at_once

    def _check_faster_steps(self) -> None:
        """Refuse what neither compiled layers nor a captured step can do."""
        if self.compile_layers and self.torch_compile:
            raise ValueError("--compile_layers with --torch_compile, which compiles the whole model; leave one out")
        if self.compile_layers and self.world_size > 1:
            raise ValueError(f"--compile_layers in {self.world_size} processes; expected one")
        if not self.cuda_graphs:
            return
        # First what no other option can change.
        if self.device.type != "cuda":
            raise ValueError(f"--cuda_graphs on the device '{self.device.type}'; expected a CUDA GPU")
        if self.world_size > 1:
            raise ValueError(f"--cuda_graphs in {self.world_size} processes; expected one")
        taken = {
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "head_epochs": 0,
            "label_smoothing_factor": 0,
            "fp16": False,
            "torch_compile": False,
        }
        for name, value in taken.items():
            # A recipe may have set it, so that leaving it out would not help.
            if getattr(self, name) != value:
                raise ValueError(f"--cuda_graphs with --{name} {getattr(self, name)}; expected --{name} {value}")

    @property
    def epoch_schedule(self) -> EpochCosine | None:
        """The schedule of `epoch_cosine`, or None."""
        return EpochCosine(**self.epoch_cosine) if isinstance(self.epoch_cosine, dict) else None


def parse_arguments(
    dataclass_types: Iterable[type], argv: Sequence[str], *, others_in_file: bool = False
) -> tuple[Any, ...]:
    """Parse dataclasses of arguments from the words after a program's name.

    A first word that ends in .json, .yaml or .yml is a recipe, see `read_recipe`, which the other words override.
    """
    kinds = tuple(dataclass_types)
    words = list(argv)
    # Only the first word can be a recipe; later ones that end like a file are values of options.
    recipe = read_recipe(Path(words.pop(0)), kinds, others_in_file) if words and words[0].endswith(FILE_TYPES) else {}
    return build_arguments(kinds, read_words(kinds, words), recipe)


class ArgumentsParser(HfArgumentParser):
    """Parser of dataclasses of arguments: errors are exceptions, and flags `--no_x` have texts of their own."""

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """Add an argument; one that switches another off is given that one's text, which says the opposite."""
        if settings.get("action") == "store_false":
            settings["help"] = f"Switch --{settings['dest']} off."
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError in place of the end of the program."""
        raise ValueError(message)


def read_words(dataclass_types: Iterable[type], words: Sequence[str], listed_by: str = "--help") -> dict[str, Any]:
    """Return the arguments that words of a command line name, with values of the types of the dataclasses' fields.

    Of fields of the same name the last one counts. An error of an unknown name has the most similar one, and
    `listed_by`, the command that lists all options.
    """
    # Shortened names are refused: what they stand for would depend on all other options.
    parser = ArgumentsParser(tuple(dataclass_types), conflict_handler="resolve", allow_abbrev=False)  # pyright: ignore[reportArgumentType] it declares a NewType
    # Required arguments may come from the recipe, so the command line is not complete by itself.
    for action in parser._actions:
        action.required = False
    # A mark of its own: None and False are values that may be given.
    unset = object()
    namespace = argparse.Namespace(**{action.dest: unset for action in parser._actions})
    _, unknown = parser.parse_known_args(list(words), namespace)
    if unknown:
        name = unknown[0].partition("=")[0]
        # Closest by its letters, as most unknown options are typing errors.
        names = [action.dest for action in parser._actions]
        similar = difflib.get_close_matches(name.removeprefix("--").replace("-", "_"), names, n=1)
        hint = f"; did you mean --{similar[0]}?" if similar else ""
        raise ValueError(f"no option {name}{hint} ({listed_by})")
    # Defaults are left out, as they would override a recipe.
    return {name: value for name, value in vars(namespace).items() if value is not unset}


def read_recipe(path: Path, dataclass_types: Iterable[type], others_in_file: bool = False) -> dict[str, Any]:
    """Read a file of arguments, see `read_settings`; those of no dataclass are errors unless `others_in_file`."""
    kinds = tuple(dataclass_types)
    # A text such as 1e-3 can be the name of a model or a directory, so arguments of text keep it as it is.
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    texts = {name for name, hint in hints.items() if str in (hint, *get_args(hint))}
    values = {
        name: value if name in texts and isinstance(value, str) else _parse_exponents(value)
        for name, value in read_settings(path).items()
    }
    names = {field.name for kind in kinds for field in fields(kind) if field.init}
    if (unknown := sorted(set(values) - names)) and not others_in_file:
        raise ValueError(f"{path}: no program argument is called {', '.join(map(repr, unknown))}")
    return {name: value for name, value in values.items() if name in names}


def build_arguments(
    dataclass_types: Iterable[type], settings: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> tuple[Any, ...]:
    """Build dataclasses of arguments from values by name.

    JSON objects are merged with the recipe's: `recipe.yaml --dataset_options '{"fold": 3}'` keeps the other options.
    Settings of the recipe's model are left out if another one is requested: `recipe.yaml --model_type pointnet`; those
    of its PEFT method likewise: `recipe.yaml --peft lora`.
    """
    kinds = tuple(dataclass_types)
    values = dict(recipe or {})
    for kind in kinds:
        # A recipe describes one model. With another one in the command line, its settings of the model would be
        # errors, but those of data and training still hold.
        foreign = kind.of_another_model(values, settings) if hasattr(kind, "of_another_model") else set()
        if dropped := sorted(foreign & set(values)):
            logger.info("%s of the recipe describe another model or method and are left out", ", ".join(dropped))
            values = {name: value for name, value in values.items() if name not in dropped}
    for name, value in settings.items():
        if isinstance(values.get(name), dict) and isinstance(value, str):
            value = merge(values[name], json_mapping(value, name))
        values[name] = value
    # Types are checked before dataclasses are built, whose own checks expect the right ones.
    for kind in kinds:
        _check_types(kind, values)
    built = HfArgumentParser(kinds).parse_dict(values)  # pyright: ignore[reportArgumentType] it declares a NewType
    for arguments in built:
        _check_numbers(arguments)
    return built


def _check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Check values that Python or a file gives for numbers, booleans and lists: any text would count as true."""
    hints = get_type_hints(kind)
    for name in values.keys() & {entry.name for entry in fields(kind) if entry.init}:
        value = values[name]
        allowed = set(get_args(hints[name]) or (hints[name],))
        if get_origin(hints[name]) is list:
            allowed = {list}
        # An error names one of the plain types that the field allows.
        wanted = [plain for plain in (bool, int, float, list) if plain in {get_origin(one) or one for one in allowed}]
        if isinstance(value, str) and wanted and str not in allowed:
            raise ValueError(f"--{name} is the text {value!r:.80}; expected {_NAMES_OF_TYPES[wanted[0]]}")
        # 0 and 1 equal False and True, and are allowed.
        if wanted == [bool] and str not in allowed and value not in (True, False, None):
            raise ValueError(f"--{name} is {value!r:.80}; expected {_NAMES_OF_TYPES[bool]}")


def _check_numbers(arguments: Any) -> None:
    """Check that numbers are not negative or NaN: the first -5 rows, for instance, would be all but the last five."""
    # Fields of transformers' TrainingArguments are not checked: of some, such as max_steps, -1 stands for none.
    own = {entry.name for entry in fields(arguments)} - {entry.name for entry in fields(TrainingArguments)}
    for name in sorted(own):
        value = getattr(arguments, name)
        if isinstance(value, (int, float)):
            least = _LEAST.get(name, 0)
            check_numbers(0 if name in _POSITIVE else least, above=name in _POSITIVE, **{f"--{name}": value})


class Request:
    """Request of a training: a dataclass whose fields are dataclasses of arguments."""

    def __post_init__(self):
        """Check the arguments, also where Python gives the dataclasses themselves."""
        for entry in fields(cast(Any, self)):
            arguments = getattr(self, entry.name, None)
            if is_dataclass(arguments) and not isinstance(arguments, type):
                _check_types(type(arguments), vars(arguments))
                _check_numbers(arguments)

    @classmethod
    def argument_classes(cls) -> tuple[type, ...]:
        """Return the dataclasses of the arguments."""
        hints = get_type_hints(cls)
        return tuple(hints[entry.name] for entry in fields(cls) if entry.init)  # pyright: ignore[reportArgumentType] a dataclass

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Self:
        """Build a request from values by name, see `build_arguments`."""
        return cls(*build_arguments(cls.argument_classes(), settings, recipe))

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None) -> Self:
        """Build a request from words of a command line, see `parse_arguments`; by default those of this process."""
        return cls(*parse_arguments(cls.argument_classes(), sys.argv[1:] if argv is None else argv))


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of names and values.

    A file may name another one, or a list of them, under `extends`, by paths relative to its folder. Their values are
    overridden by later files of the list, and by its own. Mappings are merged key by key; all other values, including
    lists, are replaced.

    Raises:
        ValueError: If it holds something else, extends itself, or its aliases stand for more than `_MOST_VALUES`.
    """
    return _with_bases(Path(path), (), {})


def _with_bases(path: Path, extended_by: tuple[Path, ...], read: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Read a file and those that it extends, each once; those of `extended_by` are being read."""
    # Links are resolved: the same file by another name is a circle too.
    place = path.resolve()
    if place in (file.resolve() for file in extended_by):
        raise ValueError(f"{path}: extends itself, by {' and '.join(map(str, extended_by))}")
    if len(extended_by) == _DEEPEST:
        raise ValueError(f"{path}: is extended over {_DEEPEST} files; expected fewer")
    # A base that several files extend is read once.
    if place in read:
        return read[place]
    values = _read_values(path)
    bases = values.pop(BASES, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: {BASES} is {bases!r:.100}; expected the path of a file, or a list of them")
    below: dict[str, Any] = {}
    for base in bases:
        # Paths are relative to the file that names them, not to the working directory.
        below = merge(below, _with_bases(path.parent / base, (*extended_by, path), read))
    read[place] = merge(below, values)
    return read[place]


def _read_values(path: Path) -> dict[str, Any]:
    # A wrong file, such as a model's weights, is told before it is read to memory.
    if (size := path.stat().st_size) > _LARGEST_FILE:
        raise ValueError(f"{path}: has {size:,} bytes; a file of arguments has at most {_LARGEST_FILE:,}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            values = json.loads(text)
            _check_extent(values)
            return dict(values)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        # Before aliases are followed: a few of them, of which each names the one before ten times, are billions.
        _check_extent(node)
        return dict(loader.construct_document(node))
    except (ValueError, TypeError, RecursionError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected names and values of arguments ({error})") from error


def _check_extent(content: Any) -> None:
    """Check how many values JSON or the nodes of YAML hold, and how deep they are."""
    waiting = [(content, 0)]
    count = 0
    # A stack in place of recursion, which deep nesting would overflow.
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(f"more than {_MOST_VALUES:,} values, or lists more than {_DEEPEST} deep")
        # Nodes of YAML hold lists of nodes, or of pairs of nodes; values of JSON are lists and dicts.
        inner = value.value if isinstance(value, yaml.CollectionNode) else value
        if isinstance(inner, dict):
            # Names of a mapping count as well as its values.
            inner = list(inner.items())
        if isinstance(inner, (list, tuple)):
            waiting += [(item, depth + 1) for item in inner]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings; values of `above` win, lists too, and mappings in both are merged."""
    # Mappings on both sides are merged key by key, so that one option is overridden and the others stay.
    both = {
        key: merge(below[key], value)
        for key, value in above.items()
        if isinstance(below.get(key), Mapping) and isinstance(value, Mapping)
    }
    return {**below, **above, **both}


def json_mapping(value: str | dict | None, name: str) -> dict[str, Any]:
    """Return a mapping given as JSON text, as in a command line, or as it is, as in a file; `name` is for errors."""
    try:
        return dict(json.loads(value) if isinstance(value, str) else value or {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"--{name} {value!r}; expected a JSON object such as '{{\"key\": 1}}' ({error})") from None


def _parse_exponents(value: Any) -> Any:
    """Convert text such as 1e-3 to numbers, also inside lists and mappings."""
    if isinstance(value, dict):
        return {key: _parse_exponents(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_parse_exponents(inner) for inner in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def words_of(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return those words of a command line that set arguments of these names."""
    kept = []
    is_kept = False
    for word in words:
        # Words without dashes are values of the last option, of which there may be several.
        if word.startswith("--"):
            is_kept = word[2:].partition("=")[0] in names
        if is_kept:
            kept.append(word)
    return kept


def fingerprints_of_inputs(words: Sequence[str]) -> dict[str, str]:
    """Return the fingerprints of the recipe, models and data that arguments name, by their names."""
    fingerprints: dict[str, str] = {}
    settings: dict[str, Any] = {}
    if words and words[0].endswith(FILE_TYPES):
        # By its values, with those of the files that it extends, so that comments and layout do not count.
        settings = read_settings(Path(words[0]))
        fingerprints[words[0]] = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    for name in (*STARTS, *_DATA):
        named = words_of(words, [name])
        # The last word counts, as it does for argparse; it is `--name=value` or the value alone. Paths may have "=".
        word = named[-1] if named else ""
        value = (word.partition("=")[2] if word.startswith("--") else word) or settings.get(name)
        # A model of the hub is no path, and counts by its name alone.
        if value and os.path.exists(str(value)) and (name in _DATA or is_saved_model(str(value))):
            fingerprints[str(value)] = path_fingerprint(str(value))
    return fingerprints
