"""Short runs of all training programs, in one or several processes, that end with comparable weights."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DistributedType, PartialState
from torch import nn

from examples import run_act_autoencoder, run_act_pretraining, run_minigpt3d, run_zero_shot
from hf_any3d.modeling.act import masking, modeling_act, modeling_act_autoencoder
from hf_any3d.training import tasks
from tests.examples.act_runs import AUTOENCODER, STUDENT
from tests.examples.conftest import tiny_shapes, words_of
from tests.examples.minigpt3d_runs import CONFIG, write_parts, write_talks
from tests.tiny_encoders import random_encoder, tiny_config
from tests.tiny_text_towers import write_text_files

BATCH = 8
"""Rows of a step in all processes."""
SHORT: dict[str, Any] = {
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "per_device_eval_batch_size": 8,
    "dataloader_drop_last": True,
    # Adam would enlarge the rounding of gradients that are zero.
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "learning_rate": 0.02,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}
CUT: dict[str, Any] = {"num_tokens": 8, "tokenizer_neighbors": 4, "num_points": 64}
FEW: dict[str, Any] = {"max_train_samples": 16, "max_eval_samples": 4, "validation_fraction": 0.0}


def prepare(folder: Path) -> None:
    """Write encoders, parts of language models and data for all programs."""
    random_encoder(tiny_config("bert")).save_pretrained(folder / "encoder")
    write_text_files(folder / "sentences", is_sentence_encoder=True)
    random_encoder(tiny_config("bert")).save_pretrained(folder / "sentences")
    shapes = tiny_shapes(rows=16, points=96)
    for split in ("train", "test"):
        shapes[split].to_parquet(folder / f"{split}.parquet")
    write_parts(folder / "parts", resid_pdrop=0.0)
    write_talks(folder / "talks")


def classification(folder: Path) -> tuple[Callable, dict[str, Any]]:
    files = {f"{split}_file": str(folder / f"{split}.parquet") for split in ("train", "test")}
    own = {"encoder_name_or_path": str(folder / "encoder"), "peft": "guided_adapter", "augment": ["scale", "jitter"]}
    options = {"cache_dir": str(folder / "cache")}
    return tasks.train_classifier, CUT | own | files | {"validation_fraction": 0.0, "dataset_options": options}


def segmentation(folder: Path) -> tuple[Callable, dict[str, Any]]:
    sizes = {"train_objects": 8, "validation_objects": 2, "test_objects": 2, "num_points": 96}
    own = {"encoder_name_or_path": str(folder / "encoder"), "dataset_name": "parts", "dataset_options": sizes}
    return tasks.train_segmenter, CUT | own | {"peft": "guided_adapter", "class_weighting": 0.5}


def zero_shot(folder: Path) -> tuple[Callable, dict[str, Any]]:
    own = {"encoder_name_or_path": str(folder / "sentences"), "judged_splits": ["test"], "peft": "lora"}
    return run_zero_shot.main, CUT | FEW | own


def act_autoencoder(folder: Path) -> tuple[Callable, dict[str, Any]]:
    own = {"teacher": str(folder / "encoder"), "model_config": AUTOENCODER["model_config"], "num_points": 96}
    return run_act_autoencoder.main, FEW | own | {"pictured_clouds": 0, "temperature_steps": 2, "kl_weight_delay": 0}


def act_pretraining(folder: Path) -> tuple[Callable, dict[str, Any]]:
    config = STUDENT["model_config"] | {"drop_path_rate": 0.0}
    own = {"autoencoder": str(folder / "one" / "act_autoencoder"), "model_config": config, "num_points": 96}
    return run_act_pretraining.main, FEW | own


def minigpt3d(folder: Path) -> tuple[Callable, dict[str, Any]]:
    lora = {name: CONFIG[name] | {"lora_dropout": 0.0} for name in ("text_lora", "qformer_lora")}
    parts = {name: str(folder / "parts" / name) for name in ("point_encoder", "qformer", "language_model")}
    own = {"stage": 3, "data_dir": str(folder / "talks"), "model_config": CONFIG | lora, "num_points": 40}
    return run_minigpt3d.main, parts | own | {"dataset_options": {"verify": False}, "max_eval_samples": 0}


PROGRAMS = {
    kind.__name__: kind
    for kind in (classification, segmentation, zero_shot, act_autoencoder, act_pretraining, minigpt3d)
}


NOISE = torch.Generator()


@contextmanager
def drawing_for_all_processes() -> Iterator[None]:
    """Switch off dropout, and draw masks and noise for the batches of all processes, of which each takes its part."""

    def part(draw: Callable[[int], torch.Tensor], rows: int) -> torch.Tensor:
        state = PartialState()
        return draw(rows * state.num_processes)[state.process_index * rows :][:rows]

    def mask(centers: torch.Tensor, num_masked: int) -> torch.Tensor:
        shape = centers.shape[1:]
        return part(lambda rows: masking.random_mask(torch.empty(rows, *shape), num_masked, NOISE), len(centers))

    def noise(like: torch.Tensor) -> torch.Tensor:
        drawn = part(lambda rows: -torch.rand(rows, *like.shape[1:], generator=NOISE).log().neg().log(), len(like))
        return drawn.to(like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(modeling_act.MASKS, "random", mask)
        patch.setattr(modeling_act, "gumbel_noise", noise)
        patch.setattr(modeling_act_autoencoder, "gumbel_noise", noise)
        patch.setattr(nn.functional, "dropout", lambda input, *args, **kwargs: input)
        yield


def shard_on_cpus() -> None:
    """Let accelerate run FSDP2 on CPUs, where it would run DDP."""
    set_device = PartialState.set_device

    def set_and_claim_gpus(state: PartialState) -> None:
        set_device(state)
        state.distributed_type = DistributedType.MULTI_GPU

    PartialState.set_device = set_and_claim_gpus
    for name, value in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }.items():
        os.environ[name] = value


def settings_of(name: str, folder: Path, processes: int) -> dict[str, Any]:
    """Return the arguments of a program in a number of processes."""
    settings = PROGRAMS[name](folder)[1]
    if name == "minigpt3d":
        batch = {"batch_sizes": [2 // processes] * 3}
    else:
        batch = {"per_device_train_batch_size": BATCH // processes}
    return SHORT | settings | batch


def run(name: str, folder: Path, output: Path, suffix: str = "", **changed: Any) -> None:
    """Run a program, with some settings changed; its model is written to a folder of its name."""
    NOISE.manual_seed(0)
    program, _ = PROGRAMS[name](folder)
    settings = settings_of(name, folder, PartialState().num_processes) | changed
    program(words_of(settings | {"output_dir": str(output / f"{name}{suffix}")}))
