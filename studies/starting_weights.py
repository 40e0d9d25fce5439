"""Make the tokenizer weights of the package: `modeling/any2point/tokenizer_generated_shapes.safetensors`.

    python -m studies.starting_weights

The quickstart's model learns the 48 classes of generated shapes (`generated_shapes`), 100 of each, for eight epochs.
Its tokenizer is written where `tokenizer_weights="generated_shapes"` reads it. A training that was interrupted
continues with the epoch in which it was.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from examples import quickstart
from hf_any3d.modeling.any2point.starting_weights import GENERATED_SHAPES
from hf_any3d.utils.atomic_files import atomic_write
from studies import earlier_recipe
from studies.generated_shapes import generate
from studies.runs import evaluate, reset_if_changed, stopwatch, use_threads

SHAPES: dict[str, int] = {"per_class": 100, "seed": 0, "num_points": 1024}
FRESH: dict[str, int] = {"per_class": 10, "seed": 1, "num_points": 1024}
"""Shapes on which the model is evaluated."""
MODEL: dict[str, Any] = {**earlier_recipe.MODEL, "num_tokens": 64, "num_layers": 1}
TRAINING: dict[str, Any] = {**earlier_recipe.TRAINING, "num_train_epochs": 8, "learning_rate": 4e-3}
_TOKENIZER = r"\.point_tokenizer\.modules_to_save\.default\."


def build_model(names: list[str]) -> PeftModel:
    """Build the quickstart's model, with the settings that were chosen before it had starting weights."""
    wrapper = quickstart.build_wrapper(SHAPES["seed"], names, **MODEL)
    return quickstart.add_adapter(wrapper, SHAPES["seed"], **earlier_recipe.ADAPTER)


def learn_generated(output_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Train on generated shapes.

    Returns:
        The tokenizer's tensors by name; figures on fresh generated shapes, `train_loss` and the time.
    """
    rows = generate(**SHAPES)
    model = build_model(rows.features["label"].names)
    arguments = quickstart.training_arguments(
        output_dir, SHAPES["seed"], **TRAINING, save_strategy="epoch", save_total_limit=1
    )
    trainer = quickstart.build_trainer(model, arguments, quickstart.plain_rows(rows), earlier_recipe.AUGMENTATION)
    trainer.remove_callback(PrinterCallback)
    # Checkpoints of other settings must not be continued.
    reset_if_changed(output_dir, {"model": MODEL, "training": TRAINING, "shapes": SHAPES})
    with stopwatch() as spent:
        loss = trainer.train(get_last_checkpoint(output_dir)).training_loss
    tensors = {
        re.split(_TOKENIZER, name)[1]: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if re.search(_TOKENIZER, name)
    }
    figures = {**evaluate(trainer, generate(**FRESH)), "train_loss": loss, "shapes": len(rows), **spent}
    return tensors, figures


def package(tensors: dict[str, torch.Tensor], figures: dict[str, Any], path: Path) -> None:
    """Write the tokenizer's weights as the library reads them, with how they were made.

    Args:
        tensors: The tokenizer's, by name.
        figures: Of the training.
        path: File to write.
    """
    new = build_model(generate(**{**SHAPES, "per_class": 1}).features["label"].names).state_dict()
    # The last norm begins with the scale of the encoder's tokens, by which a new tokenizer multiplies these again.
    (gain,) = {float(tensor[0]) for name, tensor in new.items() if name.endswith("default.token_norm.weight")}
    scaled = dict(tensors)
    for name in ("token_norm.weight", "token_norm.bias"):
        scaled[name] = tensors[name] / gain
    about = {"format": "pt", "command": "python -m studies.starting_weights", "first_stage": json.dumps(figures)}
    with atomic_write(path) as unfinished:
        save_file(scaled, unfinished, about)
    print(f"Written to {path}.")


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the tokenizer's weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/starting_weights"), help="for checkpoints")
    parser.add_argument("--package", type=Path, default=GENERATED_SHAPES, help="file to write")
    parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    tensors, figures = learn_generated(options.output_dir)
    package(tensors, figures, options.package)


if __name__ == "__main__":
    main()
