"""The arguments of ACT's first stage, and the autoencoder that they describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from hf_any3d.modeling.act.schedules import gumbel_temperature, kl_weight
from hf_any3d.modeling.encoders import encoder_settings
from hf_any3d.training.arguments import json_mapping
from hf_any3d.training.pretraining_settings import PretrainingArguments

NO_TEACHER = "none"


@dataclass
class TeacherArguments:
    """Which frozen encoder teaches, and what stands around it."""

    teacher: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Hub name or directory of a text, vision or audio encoder; none for a plain autoencoder."},
    )
    tower: str | None = field(
        default=None, metadata={"help": "Encoder of a composite checkpoint: text, vision or audio."}
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    teacher_layers: int | None = field(default=None, metadata={"help": "Use the teacher's first layers only."})
    random_teacher: bool = field(
        default=False, metadata={"help": "Draw the teacher's weights at random; they are stored with the model."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, …"})
    model_config: dict | str | None = field(
        default=None, metadata={"help": "JSON object with settings of ActAutoencoderConfig, such as num_codes."}
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        if self.teacher == NO_TEACHER and (self.random_teacher or self.tower or self.teacher_layers):
            raise ValueError("--teacher none leaves no place for --random_teacher, --tower and --teacher_layers")


@dataclass
class AutoencoderTrainingArguments(PretrainingArguments):
    """Trainer's own arguments, with defaults and schedules for the autoencoder."""

    metric_for_best_model: str | None = field(default="chamfer_l1")
    greater_is_better: bool | None = field(default=False)
    learning_rate: float = field(default=5e-4)
    weight_decay: float = field(default=5e-4)
    temperature_start: float = field(default=1.0, metadata={"help": "Temperature of the Gumbel softmax at first."})
    temperature_end: float = field(default=0.0625, metadata={"help": "Temperature at last."})
    temperature_steps: int = field(default=100_000, metadata={"help": "Optimiser steps from first to last."})
    kl_weight_end: float = field(default=0.1, metadata={"help": "Weight of the KL term at last; 0 at first."})
    kl_weight_delay: int = field(default=10_000, metadata={"help": "Optimiser steps before the weight grows."})
    kl_weight_steps: int = field(default=100_000, metadata={"help": "Optimiser steps in which it grows."})
    f_score_threshold: float = field(
        default=0.01, metadata={"help": "How near a rebuilt point is to count as right, in units of the clouds."}
    )
    drop_zero_sums: bool = field(
        default=False,
        metadata={"help": "Leave points whose coordinates sum to 0 out of evaluation, as the released program does."},
    )

    pictured_clouds: int = field(
        default=6,
        metadata={"help": "So many clouds are shown in a page, beside what was rebuilt of them; 0: none."},
    )

    def schedules(self) -> dict[str, Callable[[int], float]]:
        """Temperature and weight of the KL term by optimiser step, as the autoencoder calls them."""
        return {
            "temperature": partial(
                gumbel_temperature,
                steps=self.temperature_steps,
                start=self.temperature_start,
                end=self.temperature_end,
            ),
            "kl_weight": partial(
                kl_weight, delay=self.kl_weight_delay, steps=self.kl_weight_steps, end=self.kl_weight_end
            ),
        }

    def schedule_facts(self) -> dict[str, Any]:
        """What a report tells of the schedules."""
        return {
            "temperature": f"{self.temperature_start:g} to {self.temperature_end:g} in {self.temperature_steps} steps",
            "kl_weight": f"0 to {self.kl_weight_end:g} in {self.kl_weight_steps} steps behind {self.kl_weight_delay}",
        }


def build_autoencoder(arguments: TeacherArguments, **config: Any) -> ActAutoencoder:
    """An untrained autoencoder around the teacher that the arguments name.

    Args:
        arguments: Say which teacher.
        **config: Further settings of `ActAutoencoderConfig`; those of `arguments` win.
    """
    config |= arguments.model_config
    if arguments.teacher == NO_TEACHER:
        return ActAutoencoder(ActAutoencoderConfig(**config))
    if arguments.random_teacher:
        settings = encoder_settings(
            arguments.teacher, arguments.tower, arguments.teacher_revision, arguments.teacher_layers
        )
        # The shape of the named encoder, but none of its weights.
        return ActAutoencoder(
            ActAutoencoderConfig(
                encoder_config=settings["encoder_config"],
                encoder_tower=arguments.tower,
                attn_implementation=arguments.attn_implementation,
                **config,
            )
        )
    return ActAutoencoder.from_teacher_pretrained(
        arguments.teacher,
        tower=arguments.tower,
        revision=arguments.teacher_revision,
        num_layers=arguments.teacher_layers,
        attn_implementation=arguments.attn_implementation,
        **config,
    )
