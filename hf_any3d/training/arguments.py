"""Dataclasses of arguments that the training programs share."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import inf
from typing import Any, NamedTuple

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from hf_any3d.modeling.config_checks import check_numbers, check_settings
from hf_any3d.registry import MODEL_TYPES
from hf_any3d.training.schedules import EpochCosine, FewTokensFirst

logger = logging.getLogger(__name__)


class Range(NamedTuple):
    """Numbers that a setting may have, see `check_numbers`."""

    low: float = 0
    high: float = inf
    above: bool = False
    below: bool = False


_FINITE = Range(0, inf, below=True)
_SHARE = Range(0, 1, below=True)
_COUNT = Range(1)
# Seeds of numpy have 32 bits.
_SEED = Range(0, 2**32 - 1)
RANGES: Mapping[str, Range] = {
    # Of this library; its other numbers may not be negative.
    **dict.fromkeys(("copies", "max_train_samples", "num_layers", "num_tokens", "tokenizer_neighbors"), _COUNT),
    "folds": Range(2),
    **dict.fromkeys(("strength", "f_score_threshold"), Range(0, above=True)),
    "encoder_attention_dropout": _SHARE,
    # Of transformers, which takes others: a negative rate, for instance, would climb the loss. Of those that are not
    # here it refuses wrong ones itself, or they have an effect that is told by the documentation.
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "dataloader_prefetch_factor"), _COUNT),
    **dict.fromkeys(("save_total_limit", "ddp_timeout", "ddp_bucket_cap_mb"), _COUNT),
    "max_steps": Range(-1),
    "num_train_epochs": _FINITE,
    "learning_rate": _FINITE,  # 0 for a dry run
    "weight_decay": _FINITE,
    # Without a limit, and with 0, which stands for none
    "max_grad_norm": Range(0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _SHARE),
    **dict.fromkeys(("adam_epsilon", "neftune_noise_alpha", "eval_delay"), _FINITE),
    **dict.fromkeys(("warmup_steps", "logging_steps", "save_steps", "eval_steps"), _FINITE),
    "dataloader_num_workers": Range(0),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
}
"""What numbers of a training may be; a value out of range would be computed with, or fail after minutes of work."""
DECAY_RULES = ("trainer", "matrices", "all")
CAPTURED = [name for name, kind in MODEL_TYPES.items() if kind.captures_steps]
"""Model types whose training steps `cuda_graphs` captures."""


def argument(default: Any = MISSING, *, help: str, default_factory: Any = MISSING) -> Any:
    """Declare a field with its help text, like `HfArg`, whose type would not fit the field's."""
    return HfArg(default=default, default_factory=default_factory, help=help)


@dataclass
class ModelArguments:
    """The frozen encoder, and the config of the model around it."""

    encoder_name_or_path: str = argument(
        "sentence-transformers/all-MiniLM-L6-v2",
        help="Directory or Hub name of a pretrained text, vision or audio encoder; it stays frozen.",
    )
    tower: str | None = argument(None, help="Which encoder of a multimodal checkpoint: text, vision or audio.")
    encoder_revision: str | None = argument(None, help="Branch, tag or commit of the encoder.")
    num_layers: int | None = argument(None, help="Use only the first layers of the encoder.")
    attn_implementation: str | None = argument(
        None, help="Attention implementation: sdpa, eager, flash_attention_2, …"
    )
    encoder_dtype: str | None = argument(
        None,
        help="Dtype of the frozen encoder: float32, bfloat16 or float16; saved with the model. Trainable weights "
        "stay in float32.",
    )
    encoder_attention_dropout: float = argument(0.0, help="Attention dropout of the frozen encoder during training.")
    num_tokens: int | None = argument(None, help="Tokens per cloud.")
    tokenizer_neighbors: int | None = argument(None, help="Points per neighborhood.")
    model_config: dict | str | None = argument(
        None, help="JSON object with additional settings of the model's config."
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
        "shapes", help="Dataset in the catalog (shapes, folder, parquet, …) or on the Hub (owner/name)."
    )
    data_dir: str | None = argument(None, help="Directory with the files of the dataset.")
    dataset_options: dict | str | None = argument(
        None, help="JSON object with additional dataset options, such as a variant."
    )
    train_file: str | None = argument(None, help="Parquet file to train on, instead of a dataset name.")
    validation_file: str | None = argument(None, help="Parquet file for validation and checkpoint selection.")
    test_file: str | None = argument(None, help="Parquet file for the final test.")
    train_splits: list[str] = argument(
        default_factory=lambda: ["train"],
        help="Splits to train on together, including train. None of them is evaluated.",
    )
    validation_fraction: float = argument(
        0.2, help="Share of the training split to hold out for checkpoint selection, if there is no validation split."
    )
    validation_seed: int = argument(
        0, help="Random seed for that share; separate from --seed, so that all runs hold out the same rows."
    )
    group_column: str | None = argument(
        None, help="Column to group by: rows with equal values stay in one split; by default 'group', if present."
    )
    num_points: int = argument(1024, help="Points per cloud.")
    features: list[str] = argument(
        default_factory=lambda: ["xyz"],
        help="Channels per point: xyz, then any of rgb, normals, intensity, ring, "
        "return_number and number_of_returns.",
    )
    estimate_normals: bool = argument(
        False, help="If normals are among the features, estimate missing ones; the saved model then does the same."
    )
    up_axis: str = argument("y", help="Up axis; rotations are about it.")
    augment: list[str] = argument(
        default_factory=list,
        help="Data augmentation, in order, such as: scale rotate:axis=z,limit=0.5 jitter.",
    )
    max_train_samples: int | None = argument(None, help="Train on the first rows only, at most this many.")
    max_eval_samples: int | None = argument(None, help="Evaluate on the first rows only, at most this many.")

    def __post_init__(self):
        self.dataset_options = json_mapping(self.dataset_options, "dataset_options")
        if self.train_file is None and (self.validation_file or self.test_file):
            raise ValueError("--validation_file and --test_file need --train_file")
        if self.train_file is not None and self.data_dir is not None:
            raise ValueError(f"--data_dir {self.data_dir} and --train_file exclude each other; leave out one of them")
        if self.estimate_normals and "normals" not in (self.features or ()):
            shown = " ".join(self.features or ["xyz"])
            raise ValueError(f"--estimate_normals has no effect with --features {shown}; add normals to the features")
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
        help="PEFT method: guided_adapter, lora, ia3, …; none trains only tokenizer and head, full trains "
        "everything. By default guided_adapter with a frozen encoder, none for a point transformer.",
    )
    peft_config: dict | str | None = argument(None, help="JSON object with settings of the PEFT method.")

    def __post_init__(self):
        self.peft_config = json_mapping(self.peft_config, "peft_config")
        # Names of methods are in any case; all that compares them later sees one form.
        self.peft = self.peft and self.peft.lower()
        if self.peft not in (None, "none", "full"):
            # Here, since these arguments are also read without PEFT.
            from hf_any3d.training.peft_methods import check_peft_method

            check_peft_method(self.peft)

    @staticmethod
    def of_another_model(file: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
        """Return the settings of a file that do not apply to the method that the command line requests instead."""
        is_other = "peft" in file and given.get("peft", file["peft"]) != file["peft"]
        return {"peft_config"} if is_other else set()


@dataclass
class PointTrainingArguments(TrainingArguments):
    """Training arguments, with defaults for point clouds."""

    output_dir: str = argument("trainer_output", help="Output directory for the model and its checkpoints.")
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    license: str | None = argument(None, help="License identifier for the model card, as on the Hub.")
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
        help="Total batch size per optimizer step over all processes; sets gradient_accumulation_steps, so it "
        "stays the same if the number of processes changes.",
    )
    join_batches: bool = argument(
        True,
        help="With several processes, compute batch norm statistics and contrastive losses over all of them, so "
        "that results do not depend on the number of processes.",
    )
    two_steps_per_batch: bool = argument(
        False, help="Step twice with each gradient, first unclipped, as the original segmentation code does."
    )
    epoch_cosine: dict | str | None = argument(
        None,
        help="JSON object with settings of EpochCosine (warmup_epochs, warmup_lr, min_lr, repeat_first, by_steps, "
        "epochs), a per-epoch learning rate schedule that replaces lr_scheduler_type. epochs defaults to "
        "num_train_epochs.",
    )
    head_epochs: int = argument(0, help="Train only the head for this many epochs first, on pretrained weights.")
    index_in_workers: bool = argument(
        False,
        help="Sample centers and find neighbors in the data loader workers (--dataloader_num_workers) instead of "
        "in the model; for classifiers around a frozen encoder.",
    )
    few_tokens: dict | str | None = argument(
        None,
        help="JSON object with the share of all steps by number of tokens, such as '{\"32\": 0.8}': train with few "
        "tokens first (FewTokensFirst), for less time per step. For the tokenizer patch.",
    )
    compile_layers: bool = argument(
        False,
        help="Compile the encoder's layers with their adapters, for GPUs. The first step takes up to a minute; "
        "all layers share the compiled code. torch_compile compiles the whole model instead.",
    )
    cuda_graphs: bool = argument(
        False,
        help="Capture forward and backward pass of a batch as one CUDA graph and repeat it for batches of its size, "
        f"in one process ({', '.join(CAPTURED)}).",
    )
    weight_decay_on: str = argument(
        "trainer",
        help="Parameters with weight decay: trainer (no biases, norms, vectors and class tokens), matrices (class "
        "tokens too, as in the original code) or all (as in 3DETR).",
    )
    no_weight_decay: list[str] = argument(
        default_factory=list,
        help="Regular expressions for parameters without weight decay; requires weight_decay_on matrices.",
    )
    always_weight_decay: list[str] = argument(
        default_factory=list,
        help="Regular expressions for parameters with weight decay, including biases and norms; requires "
        "weight_decay_on matrices.",
    )
    learning_rate_factors: dict | str | None = argument(
        None,
        help="JSON object that maps regular expressions for parameters to learning rate factors, such as "
        "'{\"classifier\": 10}'. The first match wins.",
    )

    def __post_init__(self):
        check_ranges(self)
        # Below 1 it is a share of all steps.
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise ValueError(f"--warmup_steps={self.warmup_steps!r}; expected a number of steps, or a share below 1")
        # Processes that torchrun starts again would meet in a store that outlives them, which is its default: they
        # read the addresses of the first attempt there, and fail or wait without end.
        # Both variables are set by torchrun in the processes that it starts.
        restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
        shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true"
        if restarts > 0 and shares_store and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"--max_restarts {restarts}: processes that are started again would read the addresses of those "
                "before them; expected TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment, and torchrun with "
                "--standalone or --rdzv_backend c10d, or accelerate with PET_STANDALONE=1"
            )
        for name in ("eval_strategy", "save_strategy"):
            # Both are on by default, and Trainer requires both to load the best weights.
            if self.load_best_model_at_end and getattr(self, name) == "no":
                logger.warning("--%s no: no checkpoint can be selected; the weights of the last step are kept", name)
                self.load_best_model_at_end = False
        super().__post_init__()
        # Torch pins memory for accelerators, and warns in every epoch where there is none.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        self.epoch_cosine = json_mapping(self.epoch_cosine, "epoch_cosine") or None
        self.learning_rate_factors = json_mapping(self.learning_rate_factors, "learning_rate_factors") or None
        for pattern, factor in (self.learning_rate_factors or {}).items():
            check_numbers(0, inf, above=True, below=True, **{f"learning_rate_factors {pattern!r}": factor})
        self.few_tokens = _token_shares(self.few_tokens)
        check_settings(self, {"weight_decay_on": DECAY_RULES})
        if self.rows_per_step is not None:
            # Rows of one backward pass in all processes; an optimizer step has `rows_per_step` in all together.
            at_once = self.train_batch_size * self.world_size
            if self.rows_per_step < 1 or self.rows_per_step % at_once:
                raise ValueError(
                    f"--rows_per_step {self.rows_per_step}; expected a multiple of {at_once}, "
                    f"{self.train_batch_size} in each of {self.world_size} processes"
                )
            self.gradient_accumulation_steps = self.rows_per_step // at_once
        self._check_faster_steps()
        if self.two_steps_per_batch and self.fp16:
            raise ValueError(
                "--two_steps_per_batch cannot be combined with --fp16, which scales gradients; use --bf16"
            )
        for name in ("no_weight_decay", "always_weight_decay"):
            if getattr(self, name) and self.weight_decay_on != "matrices":
                raise ValueError(f"--{name} needs --weight_decay_on matrices")
        if self.epoch_cosine is not None:
            # Stored as plain values, with all defaults filled in, so that checkpoints and reports list what was used.
            self.epoch_cosine = asdict(EpochCosine(**{"epochs": self.num_train_epochs, **self.epoch_cosine}))

    def _check_faster_steps(self) -> None:
        """Refuse what neither compiled layers nor a captured step can do."""
        if self.compile_layers and self.torch_compile:
            raise ValueError(
                "--torch_compile compiles the whole model already; leave out --compile_layers or --torch_compile"
            )
        if self.compile_layers and self.world_size > 1:
            raise ValueError(f"--compile_layers needs a single process; there are {self.world_size}")
        if not self.cuda_graphs:
            return
        # First what no other option can change.
        if self.device.type != "cuda":
            raise ValueError(f"--cuda_graphs needs a CUDA GPU; the device is '{self.device.type}'")
        if self.world_size > 1:
            raise ValueError(f"--cuda_graphs needs a single process; there are {self.world_size}")
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
                raise ValueError(
                    f"--cuda_graphs cannot be combined with --{name} {getattr(self, name)}; use --{name} {value}"
                )

    @property
    def epoch_schedule(self) -> EpochCosine | None:
        """The schedule of `epoch_cosine`, or None."""
        return EpochCosine(**self.epoch_cosine) if isinstance(self.epoch_cosine, dict) else None


def json_mapping(value: str | dict | None, name: str) -> dict[str, Any]:
    """Return a mapping given as JSON text, as in a command line, or as it is, as in a file; `name` is for errors."""
    try:
        return dict(json.loads(value) if isinstance(value, str) else value or {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"--{name} {value!r}; expected a JSON object such as '{{\"key\": 1}}' ({error})") from None


def _token_shares(value: str | dict | None) -> dict[int, float] | None:
    """Return `few_tokens` with numbers as keys, which JSON cannot have; None if it is empty."""
    shares: dict[int, float] = {}
    for tokens, share in json_mapping(value, "few_tokens").items():
        if not str(tokens).isdecimal() or not isinstance(share, (int, float)):
            raise ValueError(
                f"--few_tokens: {tokens!r}: {share!r}; expected a number of tokens and a share of the steps"
            )
        shares[int(tokens)] = share
    try:
        FewTokensFirst(shares)
    except ValueError as error:
        raise ValueError(f"--few_tokens: {error}") from None
    return shares or None


def check_ranges(arguments: Any) -> None:
    """Check that numbers are within `RANGES`: the first -5 rows, for instance, would be all but the last five."""
    of_transformers = {entry.name for entry in fields(TrainingArguments)}
    for entry in fields(arguments):
        value = getattr(arguments, entry.name)
        allowed = RANGES.get(entry.name, None if entry.name in of_transformers else Range())
        if allowed is not None and isinstance(value, (int, float)):
            low, high, above, below = allowed
            check_numbers(low, high, above=above, below=below, **{f"--{entry.name}": value})
