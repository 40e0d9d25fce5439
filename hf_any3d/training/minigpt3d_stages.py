"""Training stages of MiniGPT-3D: arguments, models to start from, and the trainer."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import ConcatDataset, DataLoader
from transformers import AutoFeatureExtractor, AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig
from transformers.trainer_utils import seed_worker

from hf_any3d.modeling.config_checks import check_numbers, check_settings
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration, build_from_parts, set_stage
from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import PARTS
from hf_any3d.modeling.minigpt3d.stages import STAGES
from hf_any3d.modeling.records import POINT_ENCODER
from hf_any3d.processing.chat import RELEASED_POINTS, MiniGPT3DProcessor
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import MODEL_TYPES
from hf_any3d.training.arguments import PointTrainingArguments, argument, json_mapping
from hf_any3d.training.schedules import StepCosine
from hf_any3d.training.text_rows import ConversationRows, MixedBatches
from hf_any3d.training.trainer import PointTrainer

logger = logging.getLogger(__name__)

CONVERSATIONS = {1: ["brief"], 2: ["brief"], 3: ["detailed", "single_round", "multi_round"]}
CONVERSATIONS[4] = CONVERSATIONS[3]
"""Published conversations of each stage."""
SIZES = {"brief": (1, 9), "detailed": (2, 6), "single_round": (3, 10), "multi_round": (3, 4)}
"""Published ratio and batch size of each kind of conversations."""
PROCESSOR_SETTINGS = ("max_answer_tokens", "end_mark", "hide_inner_bos")
ROUTING = ("router", "router_top_k", "normalize_router_weights", "load_balancing_weight")
"""Fields of `MiniGPT3DConfig` that change how query experts are mixed, and no weight."""
_POINT_ENCODERS = [name for name, kind in MODEL_TYPES.items() if kind.is_point_encoder]
PUBLISHED_LORA: Mapping[str, Mapping[str, Any]] = {
    "text_lora": {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05},
    "qformer_lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query", "key", "value"]},
}
"""Default LoRA of models that are built from parts."""


@dataclass
class StageArguments:
    """The training stage, and the model or parts to start from."""

    stage: int = argument(0, help="Training stage, 1 to 4.")
    model_name_or_path: str | None = argument(None, help="Model of the previous stage: output directory or Hub name.")
    model_revision: str | None = argument(None, help="Branch, tag or commit of that model.")
    point_encoder: str | None = argument(
        None,
        help=f"To build a model from parts: Hub name or directory of a point encoder, of one of the types "
        f"{', '.join(_POINT_ENCODERS)}; all but {POINT_ENCODER} with its processor.",
    )
    point_encoder_revision: str | None = argument(None, help="Branch, tag or commit.")
    qformer: str | None = argument(None, help="Directory or Hub name of a BLIP-2 model; none for a new Q-Former.")
    qformer_revision: str | None = argument(None, help="Branch, tag or commit.")
    language_model: str | None = argument(
        None, help="Directory or Hub name of a causal language model with its tokenizer."
    )
    language_model_revision: str | None = argument(None, help="Branch, tag or commit.")
    model_config: dict | str | None = argument(
        None,
        help=f"JSON object with fields of MiniGPT3DConfig, for a model from parts; {', '.join(ROUTING)} also for a "
        "saved model.",
    )
    processor_config: dict | str | None = argument(
        None, help=f"JSON object with settings of the processor: {', '.join(PROCESSOR_SETTINGS)}."
    )
    quantization_config: dict | str | None = argument(
        None,
        help="JSON object with arguments of BitsAndBytesConfig, such as load_in_4bit, to quantize the language "
        "model except for LoRA and norms.",
    )
    frozen_in_half: bool = argument(
        False, help="Keep the language model's frozen matrices in the precision of --bf16 or --fp16."
    )
    left_frozen: list[str] = argument(
        default_factory=list,
        help="Parameter groups of the stage to keep frozen, for ablations: point_mlp, queries, projector, "
        "qformer_lora, qformer_norms, text_lora or text_norms.",
    )
    skipped_stages: bool = argument(False, help="Allow starting from any earlier stage, for ablations.")
    store_parts: bool = argument(
        False, help="Save the weights of the public parts with the model, instead of only their names."
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        self.processor_config = json_mapping(self.processor_config, "processor_config")
        self.quantization_config = json_mapping(self.quantization_config, "quantization_config")
        # Settings that the processor does not have would be attributes without effect.
        unknown = sorted(set(self.processor_config) - set(PROCESSOR_SETTINGS))
        if unknown:
            raise ValueError(f"--processor_config: {unknown[0]!r}; expected {', '.join(PROCESSOR_SETTINGS)}")
        check_settings(self, {"stage": STAGES})
        given = [part for part in PARTS if getattr(self, part) is not None]
        # How experts are mixed is no property of the weights, and may be changed for a saved model too.
        given += [name for name in ("model_config",) if set(self.model_config) - set(ROUTING)]
        if self.model_name_or_path is not None and given:
            raise ValueError(f"--model_name_or_path and --{given[0]} exclude each other; leave out one of them")
        # A model comes from the previous stage or from all of its parts.
        missing = [part for part in PARTS if part not in given]
        if self.model_name_or_path is None and missing:
            other = "none for a new one" if missing[0] == "qformer" else "--model_name_or_path"
            raise ValueError(f"--{missing[0]} is not given; expected a name or directory, or {other}")


@dataclass
class ConversationArguments:
    """The conversations to train on."""

    dataset_name: str = argument("objaverse_captions", help="Dataset in the catalog that has an option `which`.")
    data_dir: str | None = argument(None, help="Directory with the files of the dataset.")
    dataset_options: dict | str | None = argument(
        None,
        help="JSON object with additional dataset options, such as verify, or streaming, with which each process "
        "reads the files of its own batches only.",
    )
    conversations: list[str] | None = argument(
        None,
        help="Conversation types, one type per batch: brief, detailed, single_round, multi_round or complex. By "
        "default as published for the stage.",
    )
    data_ratios: list[float] | None = argument(None, help="Relative frequency of each conversation type.")
    batch_sizes: list[int] | None = argument(None, help="Batch size per device for each conversation type.")
    max_train_samples: int | None = argument(None, help="Number of training rows for each conversation type.")
    max_eval_samples: int = argument(200, help="Number of validation rows to evaluate; 0 for none.")
    num_points: int = argument(8192, help="Points per cloud, for a model built from parts.")
    sampling: str = argument("random", help="How to sample these points: random, farthest or first.")

    def __post_init__(self):
        options = json_mapping(self.dataset_options, "dataset_options")
        if options.pop("streaming", False):
            # Batches are drawn at random from all rows, so that a resumed run gets the same ones: a stream has no
            # such order, but the clouds can stay in their files too.
            options["copy_clouds"] = False
        self.dataset_options = options

    def choose(self, stage: int) -> None:
        """Set the published values of a stage where none are given."""
        # Published values hold for the conversations of a stage, others have those of brief ones.
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
    """Training arguments, with defaults for these stages; the length of a run is given in steps."""

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
    step_cosine: dict | str | None = argument(
        None,
        help="JSON object with settings of StepCosine (warmup_steps, warmup_lr, min_lr, epochs), which replaces "
        "lr_scheduler_type; its epochs divide --max_steps.",
    )

    def __post_init__(self):
        # Batches of different kinds have different sizes.
        if self.rows_per_step is not None:
            raise ValueError(
                "--rows_per_step is not for this task; use --batch_sizes and --gradient_accumulation_steps"
            )
        super().__post_init__()
        if self.max_steps < 1:
            raise ValueError(f"--max_steps {self.max_steps}; expected at least 1, since batches are drawn without end")
        self.step_cosine = json_mapping(self.step_cosine, "step_cosine") or None
        if self.step_cosine is not None:
            settings = {"epochs": 1, **self.step_cosine}
            check_numbers(1, epochs=settings["epochs"])
            # The schedule counts its steps within epochs of equal length.
            if self.max_steps % settings["epochs"]:
                raise ValueError(f"--max_steps {self.max_steps}; expected a multiple of {settings['epochs']} epochs")
            steps = self.max_steps // settings["epochs"]
            schedule = StepCosine(**settings, steps_per_epoch=steps)
            # The steps of an epoch follow from max_steps, so they are not stored with it.
            self.step_cosine = {name: value for name, value in asdict(schedule).items() if name != "steps_per_epoch"}

    @property
    def schedule_facts(self) -> dict[str, Any]:
        """Return the settings of `step_cosine` that a report lists."""
        return {} if self.step_cosine is None else {"lr_scheduler": "step_cosine", "step_cosine": self.step_cosine}

    @property
    def step_schedule(self) -> StepCosine | None:
        """The schedule of `step_cosine`, or None."""
        if not isinstance(self.step_cosine, dict):
            return None
        return StepCosine(**self.step_cosine, steps_per_epoch=self.max_steps // self.step_cosine["epochs"])


def open_for_stage(
    arguments: StageArguments, num_points: int, sampling: str = "random"
) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
    """Open the model of the previous stage, or build one from parts for so many sampled points, and set the stage."""
    settings = arguments.quantization_config
    name = arguments.model_name_or_path
    quantized = (
        {"quantization_config": BitsAndBytesConfig(**settings)} if isinstance(settings, dict) and settings else {}
    )
    if name is None:
        model, processor = _build_model(arguments, num_points, sampling, **quantized)
    else:
        hub: dict[str, Any] = {} if arguments.model_revision is None else {"revision": arguments.model_revision}
        config = MiniGPT3DConfig.from_pretrained(name, **hub)
        before = config.stage
        stage = arguments.stage
        if before is None and stage > 1:
            logger.warning(
                "%s does not record its training stage; stage %d must follow stage %d", name, stage, stage - 1
            )
        # An untrained model has no stage, which counts as 0.
        elif (before or 0) >= stage or ((before or 0) != stage - 1 and not arguments.skipped_stages):
            expected = f"a model of stage {stage - 1}" if stage > 1 else "an untrained one, or parts"
            raise ValueError(f"--stage {stage} of {name}, a model of stage {before}; expected {expected}")
        assert isinstance(arguments.model_config, dict)
        # Routing only, as all else was refused with a saved model.
        config.update(arguments.model_config)
        # In float32, in which parameters are trained; autocast lowers the precision of single operations.
        model = cast(
            MiniGPT3DForConditionalGeneration,
            MiniGPT3DForConditionalGeneration.from_pretrained(
                name, config=config, dtype=torch.float32, **hub, **quantized
            ),
        )
        processor = MiniGPT3DProcessor.from_pretrained(name, **hub)
    assert isinstance(arguments.processor_config, dict)
    for name, value in arguments.processor_config.items():
        setattr(processor, name, value)
    if arguments.store_parts:
        model.store_parts()
    set_stage(model, arguments.stage, arguments.left_frozen)
    if model.config.image_priors is False:
        logger.warning(
            "stage %d of a language model without image priors (TinyGPT-V's LoRA, norms and projector), which the "
            "paper's training starts from: its results are of another experiment; see docs/minigpt3d_checkpoints.md",
            arguments.stage,
        )
    return model, processor


def halve_frozen(model: MiniGPT3DForConditionalGeneration, dtype: torch.dtype) -> None:
    """Cast the frozen matrices of the language model to half precision, for training with autocast.

    A language model that is stored with the model is refused, as its saved weights would lose precision.
    """
    if "language_model" not in (model.config.parts or {}):
        raise ValueError(
            "--frozen_in_half needs a language model that is opened by its name, not one stored with the model"
        )
    assert model.language_model is not None
    # Norms and biases are small and stay in float32, as does LoRA, which is stored though the last stage freezes it.
    # By `data`, so that parameters stay the same objects.
    for name, parameter in model.language_model.named_parameters():
        is_full = parameter.requires_grad or parameter.ndim < 2 or "low_rank_" in name
        if parameter.is_floating_point() and not is_full:
            parameter.data = parameter.data.to(dtype)


def _build_model(
    arguments: StageArguments, num_points: int, sampling: str, **quantized: Any
) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
    assert arguments.point_encoder is not None and arguments.qformer is not None
    assert arguments.language_model is not None and isinstance(arguments.model_config, dict)
    # Parts are fixed to the commits that the arguments name.
    revisions = {part: getattr(arguments, f"{part}_revision") for part in PARTS}
    tokenizer = AutoTokenizer.from_pretrained(arguments.language_model, revision=revisions["language_model"] or "main")
    # The first free id; for Phi-2 the released one.
    config = {**PUBLISHED_LORA, "point_token_id": len(tokenizer), **arguments.model_config}
    qformer = None if arguments.qformer.lower() == "none" else arguments.qformer
    model = build_from_parts(
        arguments.point_encoder,
        qformer,
        arguments.language_model,
        torch.float32,
        revisions=revisions,
        **quantized,
        **config,
    )
    # The released point encoder has no processor of its own.
    if cast(PreTrainedConfig, model.config.point_config).model_type == POINT_ENCODER:
        points = PointCloudProcessor(**RELEASED_POINTS)
    else:
        # Axes, colors and scale differ between other encoders.
        revision = revisions["point_encoder"] or "main"
        points = cast(
            PointCloudProcessor, AutoFeatureExtractor.from_pretrained(arguments.point_encoder, revision=revision)
        )
    points.num_points = num_points
    points.sampling = sampling
    return model, MiniGPT3DProcessor.from_config(model.config, tokenizer, points)


def warn_of_local_parts(parts: Mapping[str, Mapping[str, str | None]] | None) -> None:
    """Warn about parts that are local directories, before a model is shared."""
    for part, recorded in (parts or {}).items():
        name = recorded.get("name_or_path")
        if name is not None and os.path.isdir(name):
            logger.warning(
                "the %s is the local directory %s, which others do not have, so its weights are stored with the "
                "model; use a repository to store its name alone",
                part,
                name,
            )


def trained_groups(model: MiniGPT3DForConditionalGeneration) -> dict[str, int]:
    """Count the trained parameters of each part."""
    groups: Counter[str] = Counter()
    for name, parameter in model.base_model.named_parameters():
        if parameter.requires_grad:
            # Names such as bridge.qformer.layer…: the bridge has several parts, which are counted apart.
            first, second, *_ = name.split(".")
            part = f"{first} {second}" if first == "bridge" else first
            kind = ""
            if ".low_rank_" in name:
                kind = " LoRA"
            elif first == "language_model" or second == "qformer":
                kind = " norms"  # all else in them is frozen
            groups[part.replace("_", " ") + kind] += parameter.numel()
    return dict(groups)


class StageTrainer(PointTrainer):
    """Trainer with batches of `MixedBatches` and the schedule `step_cosine`."""

    args: StageTrainingArguments
    model: MiniGPT3DForConditionalGeneration
    train_dataset: ConcatDataset

    def __init__(
        self,
        *args: Any,
        kinds: Sequence[ConversationRows],
        batch_sizes: Sequence[int],
        ratios: Sequence[float],
        **kwargs: Any,
    ):
        super().__init__(*args, train_dataset=ConcatDataset(kinds), **kwargs)
        self.kinds = list(kinds)
        self.batch_sizes = list(batch_sizes)
        self.ratios = list(ratios)
        self.batches()  # raises errors early

    @property
    def rows_per_step(self) -> list[int]:
        """Rows of an optimizer step in all processes, for each kind of conversations."""
        return [size * self.args.gradient_accumulation_steps * self.args.world_size for size in self.batch_sizes]

    def batches(self) -> MixedBatches:
        """Return the sampler of all batches of the run on this process."""
        return MixedBatches(
            [len(rows) for rows in self.kinds],
            self.batch_sizes,
            self.ratios,
            # Batches are drawn for the whole run at once, so that a resumed run goes on where it stopped.
            self.args.max_steps * self.args.gradient_accumulation_steps,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            self.args.process_index,
            self.args.world_size,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return batches of the complete run, not split among processes: each draws its own rows."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches(),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
        )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Checkpoints do not contain the public parts, about which the stock Trainer would warn; anything else that is
        # missing is an error, not a warning.
        lacking = set(load_result.missing_keys) - self.model.names_stored_elsewhere()
        wrong = sorted(lacking.union(load_result.unexpected_keys))
        if wrong:
            raise ValueError(f"the checkpoint does not fit the model: {', '.join(wrong[:8])}")

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule of the learning rate."""
        schedule = self.args.step_schedule
        if self.lr_scheduler is None and schedule is not None:
            self.lr_scheduler = schedule.scheduler(optimizer or self.optimizer)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)
