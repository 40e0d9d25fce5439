"""Does a SpatialLM trained from scratch find walls and objects in rooms that it has not seen, and what does it take?

    python -m studies.layouts --output-dir outputs/layouts

Trains a tiny model on generated rooms, then evaluates it on rooms with other objects: as they are, without points, with
the points of another room, with an answer held to the grammar, and on copies that are turned, on their side and in
millimeters, with and without alignment. A run that is stopped continues; each evaluation is stored when it ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from hf_any3d.data import load_point_dataset
from hf_any3d.evaluation.layouts import score_layouts
from hf_any3d.modeling.spatiallm import Layout, SpatialLMConfig, SpatialLMForConditionalGeneration
from hf_any3d.spatiallm_processing import END, PLACE, START, TASKS, SpatialLMProcessor, VoxelizedRoom
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.checkpoints import checkpoint_to_resume
from hf_any3d.training.layouts import LayoutCollator, LayoutRows
from hf_any3d.training.program import build_trainer
from studies.runs import kept_run, stopwatch, use_threads

NUM_BINS = 320
POINT = {
    **{"model_type": "point_transformer_v3", "in_channels": 6, "grid_size": 32 / NUM_BINS, "depths": (1, 1, 1, 1)},
    **{"hidden_sizes": (24, 48, 72, 96), "num_attention_heads": (2, 4, 6, 8), "patch_sizes": (128,) * 4},
    **{"pooling_strides": (2, 2, 2), "drop_path_rate": 0.0, "shuffle_curves": "never"},
}
TEXT = {
    **{"model_type": "qwen2", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "max_position_embeddings": 1024,
}
ROOMS = {"train_rooms": 2000, "validation_rooms": 0, "test_rooms": 32, "num_points": 3000, "num_objects": 4}
DECAY_STEPS = 300
TRAINING = {
    **{"per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 40, "weight_decay": 0.05},
    **{"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": DECAY_STEPS}},
    **{"max_grad_norm": 1.0, "logging_steps": 25, "save_strategy": "steps", "save_steps": 100, "save_total_limit": 1},
    **{"eval_strategy": "no", "load_best_model_at_end": False},
}
"""The rate is constant, then falls for the last steps, so that a run may be continued for longer or shorter."""
TURNS, SIZES = "quarter", (0.9, 1.1)
END_OF_TEXT, FILL = "<|end|>", "<|fill|>"
TEMPLATE = "{% for one in messages %}{{ one['content'] }}\n{% endfor %}"


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with merges, in which a number with the comma before it is a token, as is a name."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r",?\d+|=[A-Z][a-z]+\(|\)\n?|,?[a-z]+_?|\s?[A-Z]?[a-z]+[,.]?|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=[END_OF_TEXT, FILL, START, PLACE, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    numbers = [f"{number},{number}" for number in range(NUM_BINS)]
    tokenizer.train_from_iterator([*numbers, *TASKS.values(), *texts], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=FILL,
        additional_special_tokens=[START, PLACE, END],
    )
    made.chat_template = TEMPLATE
    return made


def build_processor(splits: DatasetDict) -> SpatialLMProcessor:
    """Return the processor, whose tokenizer is made of the training texts."""
    layouts = (Layout.parse(text) for text in splits["train"]["layout"][:300])
    texts = [layout.translated((4, 4, 0)).quantized(NUM_BINS).write() for layout in layouts]
    return SpatialLMProcessor(build_tokenizer(texts), num_bins=NUM_BINS, stride=8, clean=False)


def build_model(processor: SpatialLMProcessor, seed: int) -> SpatialLMForConditionalGeneration:
    """Return the model with random weights."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    start, place, end = tokenizer.convert_tokens_to_ids([START, PLACE, END])
    text = TEXT | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = SpatialLMConfig(
        point_config=POINT,
        text_config=text,
        num_bins=NUM_BINS,
        point_start_token_id=start,
        point_token_id=place,
        point_end_token_id=end,
    )
    return SpatialLMForConditionalGeneration(config)


def train(folder: Path, splits: DatasetDict, processor: SpatialLMProcessor, seed: int, steps: int) -> dict[str, Any]:
    """Train with one seed, from the last checkpoint if there is one; returns the cost."""
    arguments = PointTrainingArguments(
        output_dir=str(folder),
        seed=seed,
        max_steps=steps,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **TRAINING,
    )
    rows = LayoutRows(splits["train"], processor, seed=seed, turns=TURNS, sizes=SIZES)
    model = build_model(processor, seed)
    trainer = build_trainer(model, arguments, rows, None, processor, data_collator=LayoutCollator(processor))
    with stopwatch() as spent:
        loss = trainer.train(resume_from_checkpoint=checkpoint_to_resume(folder)).training_loss
    trainer.save_model()
    parameters = sum(weight.numel() for weight in model.parameters())
    return {"train_loss": loss, "parameters": parameters, "steps": steps, **spent}


def main(words: Sequence[str] | None = None) -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/layouts"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of each seed")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    splits = load_point_dataset("rooms_with_layouts", **ROOMS)
    processor = build_processor(splits)
    for seed in options.seeds:
        train(options.output_dir / f"seed-{seed}", splits, processor, seed, options.steps)


if __name__ == "__main__":
    main()
