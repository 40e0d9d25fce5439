"""The arguments that the training programs share."""

import logging
from dataclasses import asdict, dataclass, field, fields

from transformers import TrainingArguments

from hf_any3d.training.arguments import json_mapping
from hf_any3d.training.schedules import EpochCosine

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
