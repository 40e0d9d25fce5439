"""The arguments of the program that trains MiniGPT-3D in four stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import PARTS
from hf_any3d.modeling.minigpt3d.stages import STAGES
from hf_any3d.training.arguments import json_mapping
from hf_any3d.training.schedules import StepCosine
from hf_any3d.training.settings import PointTrainingArguments

CONVERSATIONS = {1: ["brief"], 2: ["brief"], 3: ["detailed", "single_round", "multi_round"]}
CONVERSATIONS[4] = CONVERSATIONS[3]
"""Stage -> conversations that it was published with."""
SIZES = {"brief": (1, 9), "detailed": (2, 6), "single_round": (3, 10), "multi_round": (3, 4)}
"""Conversations -> published ratio and batch size."""
PROCESSOR_SETTINGS = ("max_answer_tokens", "end_mark", "hide_inner_bos")


@dataclass
class StageArguments:
    """Which stage is trained, and from what."""

    stage: int = field(default=0, metadata={"help": "Stage of training, 1 to 4."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model of the stage before: its output directory or repository."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of that model."})
    point_encoder: str | None = field(
        default=None, metadata={"help": "Instead of a model, its parts: hub name or directory of a point encoder."}
    )
    point_encoder_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit."})
    qformer: str | None = field(
        default=None, metadata={"help": "The same of a BLIP-2 model; none for a fresh Q-Former."}
    )
    qformer_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit."})
    language_model: str | None = field(
        default=None, metadata={"help": "The same of a causal language model, with its tokenizer."}
    )
    language_model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit."})
    model_config: dict | str | None = field(
        default=None, metadata={"help": "JSON object with fields of MiniGPT3DConfig, for a model from parts."}
    )
    processor_config: dict | str | None = field(
        default=None,
        metadata={"help": f"JSON object with settings of the processor: {', '.join(PROCESSOR_SETTINGS)}."},
    )
    quantization_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON object with arguments of BitsAndBytesConfig, such as load_in_4bit: opens the language model "
            "in fewer bits. LoRA, norms and all else stay as they are."
        },
    )
    frozen_in_half: bool = field(
        default=False,
        metadata={"help": "Keep the language model's frozen matrices in the precision of --bf16 or --fp16."},
    )
    store_parts: bool = field(
        default=False, metadata={"help": "Store the public parts with the model instead of naming them."}
    )

    def __post_init__(self):
        for name in ("model_config", "processor_config", "quantization_config"):
            setattr(self, name, json_mapping(getattr(self, name), name))
        if unknown := sorted(set(self.processor_config) - set(PROCESSOR_SETTINGS)):
            raise ValueError(
                f"--processor_config has {unknown[0]!r}; expected some of {', '.join(PROCESSOR_SETTINGS)}"
            )
        if self.stage not in STAGES:
            raise ValueError(f"--stage {self.stage}; expected one of {', '.join(map(str, STAGES))}")
        given = [part for part in PARTS if getattr(self, part) is not None]
        if self.model_name_or_path is not None and given:
            raise ValueError(f"--model_name_or_path and --{given[0]}; expected a model or its parts")
        if self.model_name_or_path is not None and self.model_config:
            raise ValueError("--model_config with --model_name_or_path; expected it with --point_encoder and others")
        if self.model_name_or_path is None and (missing := [part for part in PARTS if part not in given]):
            other = "none for a fresh one" if missing[0] == "qformer" else "--model_name_or_path"
            raise ValueError(f"--{missing[0]} is not given; expected a name or directory, or {other}")


@dataclass
class ConversationArguments:
    """What is talked about."""

    dataset_name: str = field(
        default="objaverse_captions", metadata={"help": "Name in the catalogue, whose `which` picks conversations."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Where the files of the dataset lie."})
    dataset_options: dict | str | None = field(
        default=None, metadata={"help": "JSON object with further options of the dataset, such as verify."}
    )
    conversations: list[str] | None = field(
        default=None,
        metadata={
            "help": "Conversations to train on, each batch on one kind of them: brief, detailed, single_round, "
            "multi_round or complex. By default those that the stage was published with."
        },
    )
    data_ratios: list[float] | None = field(
        default=None, metadata={"help": "How often each kind is drawn, in relation to the others."}
    )
    batch_sizes: list[int] | None = field(
        default=None, metadata={"help": "Rows of a batch of each kind, on each device."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many of each kind."})
    max_eval_samples: int = field(
        default=200, metadata={"help": "Judge on the first so many rows of the validation split; 0 for none."}
    )
    num_points: int = field(default=8192, metadata={"help": "Points of a cloud, for a model from parts."})
    sampling: str = field(
        default="random", metadata={"help": "How larger clouds are reduced to them: random, farthest or first."}
    )

    def __post_init__(self):
        self.dataset_options = json_mapping(self.dataset_options, "dataset_options")
        if self.dataset_options.get("streaming"):
            raise ValueError("--dataset_options has streaming; expected rows that can be drawn in any order")

    def choose(self, stage: int) -> None:
        """Fill in what a stage was published with, where nothing is said.

        Raises:
            ValueError: A number of ratios or batch sizes that is not that of the kinds, or one of them not positive.
        """
        self.conversations = self.conversations or CONVERSATIONS[stage]
        published = [SIZES.get(kind, (1, 9)) for kind in self.conversations]
        for name, place in (("data_ratios", 0), ("batch_sizes", 1)):
            values = getattr(self, name) or [pair[place] for pair in published]
            if len(values) != len(self.conversations) or any(not value > 0 for value in values):
                raise ValueError(
                    f"--{name} {' '.join(map(str, values))}; expected {len(self.conversations)} numbers above 0, for "
                    f"{', '.join(self.conversations)}"
                )
            setattr(self, name, values)


@dataclass
class StageTrainingArguments(PointTrainingArguments):
    """Trainer's own arguments, with defaults for these stages; a run is counted in steps."""

    eval_strategy: str = field(default="no")
    save_strategy: str = field(default="steps")
    load_best_model_at_end: bool = field(default=False)
    metric_for_best_model: str | None = field(default=None)
    prediction_loss_only: bool = field(default=True)
    per_device_eval_batch_size: int = field(default=8)
    learning_rate: float = field(default=3e-5)
    weight_decay_on: str = field(default="matrices")
    max_grad_norm: float = field(default=0.0)
    seed: int = field(default=42)
    step_cosine: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON object with settings of StepCosine (warmup_steps, warmup_lr, min_lr, epochs) instead of "
            "lr_scheduler_type; the steps of its epochs are --max_steps together."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_steps < 1:
            raise ValueError(f"--max_steps {self.max_steps}; expected at least 1, since the data has no end")
        self.step_cosine = json_mapping(self.step_cosine, "step_cosine") or None
        if self.step_cosine is not None:
            known = {setting.name for setting in fields(StepCosine)} - {"steps_per_epoch"}
            if unknown := sorted(set(self.step_cosine) - known):
                raise ValueError(f"--step_cosine has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
            settings = {"epochs": 1, **self.step_cosine}
            if self.max_steps % settings["epochs"]:
                raise ValueError(f"--max_steps {self.max_steps}; expected a multiple of {settings['epochs']} epochs")
            steps = self.max_steps // settings["epochs"]
            schedule = StepCosine(**settings, steps_per_epoch=steps)
            self.step_cosine = {name: value for name, value in asdict(schedule).items() if name != "steps_per_epoch"}

    @property
    def schedule_facts(self) -> dict[str, Any]:
        """What a report tells of `step_cosine`."""
        return {} if self.step_cosine is None else {"lr_scheduler": "step_cosine", "step_cosine": self.step_cosine}

    @property
    def step_schedule(self) -> StepCosine | None:
        """The schedule that `step_cosine` tells, if it tells one."""
        if self.step_cosine is None:
            return None
        return StepCosine(**self.step_cosine, steps_per_epoch=self.max_steps // self.step_cosine["epochs"])
