"""Does a SpatialLM trained from scratch find walls and objects in rooms that it has not seen, and what does it take?

    python -m studies.layouts --output-dir outputs/layouts

Trains a tiny model on generated rooms, then evaluates it on rooms with other objects: as they are, without points,
with the points of another room, with answers held to the grammar, and on copies that are turned, or on their side and
in other units too, with and without alignment. A stopped run continues; each evaluation is stored when it ends.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from hf_any3d.data import load_point_dataset
from hf_any3d.data.scan_frames import ScanFrame
from hf_any3d.evaluation.layouts import score_layouts
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.modeling.layers.layouts import Layout
from hf_any3d.modeling.spatiallm import SpatialLMConfig, SpatialLMForConditionalGeneration
from hf_any3d.processing.rooms import END, PLACE, START, TASKS, SpatialLMProcessor
from hf_any3d.training.checkpoints import checkpoint_to_resume
from hf_any3d.training.layout_objects import LayoutTrainer
from hf_any3d.training.layouts import LayoutCollator, LayoutRows, LayoutTrainingArguments
from hf_any3d.training.program import build_trainer
from hf_any3d.visualization.figures import plot_views
from hf_any3d.visualization.viewer import CloudView, box_edges, label_colors
from studies.runs import kept_run, stopwatch

NUM_BINS = 320
POINT = {
    **{"model_type": "point_transformer_v3", "in_channels": 6, "grid_size": 32 / NUM_BINS, "depths": (1, 1, 1, 1)},
    **{"hidden_sizes": (24, 48, 72, 96), "num_attention_heads": (2, 4, 6, 8), "patch_sizes": (128,) * 4},
    **{"pooling_strides": (2, 2, 2), "drop_path_rate": 0.0, "shuffle_curves": "never", "initializer_range": 0.08},
}
TEXT = {
    **{"model_type": "qwen2", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    **{"max_position_embeddings": 1024, "initializer_range": 0.06},
}
# Narrow layers need larger weights: with 0.02 what comes from the points is lost beside the embeddings of words.
BETWEEN_RANGE = 0.1
ROOMS = {"train_rooms": 2000, "validation_rooms": 0, "test_rooms": 32, "num_points": 2500, "num_objects": 3}
TRAINING = {
    **{"per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 40, "weight_decay": 0.05},
    **{"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 300}},
    **{"max_grad_norm": 1.0, "logging_steps": 25, "save_strategy": "steps", "save_steps": 100, "save_total_limit": 1},
    **{"eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 2500},
}
"""The rate is constant, then falls for the last steps, so that a run may be continued for longer or shorter."""
RUNS: dict[str, dict[str, Any]] = {
    "second": {"point": POINT, "rooms": ROOMS, "training": TRAINING, "sizes": (0.9, 1.1), "fold": False, "waves": 0.0},
    "third": {
        # All tokens of a room see each other, three times.
        "point": POINT | {"depths": (1, 1, 1, 3), "patch_sizes": (128, 128, 128, 256)},
        "rooms": ROOMS
        | {"train_rooms": 6000, "test_rooms": 64, "num_points": 1600}
        | {"classes": ["chair", "table", "storage", "plant"]},
        "training": TRAINING
        | {"learning_rate": 2e-3, "adam_beta2": 0.95, "max_steps": 1150}
        | {"object_loss": 1.0, "object_steps": 300, "lr_scheduler_kwargs": {"num_decay_steps": 350}},
        "sizes": (0.85, 1.15),
        "fold": True,
        "waves": 0.1,
    },
}
RUNS["fourth"] = RUNS["third"] | {
    "continues": "third",
    "training": RUNS["third"]["training"]
    | {"attention_loss": 0.3, "max_steps": 1450, "lr_scheduler_kwargs": {"num_decay_steps": 250}},
}
RUNS["fifth"] = RUNS["fourth"] | {
    "continues": "fourth",
    "training": RUNS["fourth"]["training"] | {"max_steps": 1900, "lr_scheduler_kwargs": {"num_decay_steps": 250}},
}
"""Settings of the runs that the page describes; one that continues another starts from its last checkpoint."""
BATCH = 16
TURNS = "quarter"
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
    classes = splits["train"].features["box_labels"].feature.names
    return SpatialLMProcessor(
        build_tokenizer(texts), num_bins=NUM_BINS, stride=8, align=False, clean=False, classes=classes
    )


def build_model(
    processor: SpatialLMProcessor, seed: int, point: Mapping[str, Any] = POINT, waves: float = 0.0
) -> SpatialLMForConditionalGeneration:
    """Return the model with random weights.

    Args:
        processor: Its processor.
        seed: Seed of the weights.
        point: Settings of the point encoder.
        waves: Height of sine waves that are added to the embeddings of numbers, so that near numbers are alike.
    """
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
        point_config=dict(point),
        text_config=text,
        num_bins=NUM_BINS,
        initializer_range=BETWEEN_RANGE,
        point_start_token_id=start,
        point_token_id=place,
        point_end_token_id=end,
    )
    model = SpatialLMForConditionalGeneration(config)
    if waves:
        embeddings = cast(nn.Embedding, model.get_input_embeddings()).weight.data
        half = embeddings.shape[1] // 2
        # From 4 bins to twice the range.
        lengths = 4 * (NUM_BINS / 2) ** (torch.arange(half) / (half - 1))
        angles = 2 * math.pi * torch.arange(NUM_BINS)[:, None] / lengths
        added = waves * torch.cat([angles.sin(), angles.cos()], dim=1)
        for form in ("{}", ",{}"):  # after a parenthesis, and after a comma
            embeddings[tokenizer.convert_tokens_to_ids([form.format(number) for number in range(NUM_BINS)])] += added
    return model


def train(
    folder: Path, splits: DatasetDict, processor: SpatialLMProcessor, seed: int, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Train with one seed, from the last checkpoint if there is one; returns the cost."""
    arguments = LayoutTrainingArguments(
        output_dir=str(folder), seed=seed, use_cpu=True, report_to="none", disable_tqdm=True, **run["training"]
    )
    rows = LayoutRows(
        splits["train"], processor, seed=seed, turns=TURNS, sizes=run["sizes"], fold_quarter_turns=run["fold"]
    )
    model = build_model(processor, seed, run["point"], run["waves"])
    trainer = build_trainer(
        model,
        arguments,
        rows,
        None,
        cast(Any, processor),
        LayoutTrainer,
        data_collator=LayoutCollator(processor, has_objects=arguments.object_loss > 0),
        object_loss=arguments.object_loss,
        object_steps=arguments.object_steps,
        attention_loss=arguments.attention_loss,
    )
    with stopwatch() as spent:
        loss = trainer.train(resume_from_checkpoint=checkpoint_to_resume(folder)).training_loss
    trainer.save_model()
    parameters = sum(weight.numel() for weight in model.parameters())
    return {"train_loss": loss, "parameters": parameters, "steps": arguments.max_steps, **spent}


# Name -> what is changed: the points that the model sees, the rooms, how they are read, how answers are made.
CONDITIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "points of another room": {"control": "another room"},
    "no points": {"control": "no points"},
    "grammar": {"grammar": True},
    "drawn": {"generate": {"do_sample": True, "temperature": 1.0}},
    "drawn, grammar": {"generate": {"do_sample": True, "temperature": 1.0}, "grammar": True},
    "aligned": {"align": True},
    "turned": {"moved": "turned"},
    "turned, aligned": {"moved": "turned", "align": True},
    "moved": {"moved": "all"},
    "moved, aligned": {"moved": "all", "align": True},
}
MOST_TOKENS = 260


def moved_frame(number: int, moved: str | None) -> ScanFrame:
    """Draw the frame of a copy of a room by its number: "turned" about the vertical, or moved in "all" ways."""
    if moved is None:
        return ScanFrame()
    generator = np.random.default_rng((7, number))
    up_axis, unit = UP_AXES[int(generator.integers(1, len(UP_AXES)))], float(generator.choice([1.0, 0.01, 0.001]))
    angle, floor = float(generator.uniform(-math.pi / 4, math.pi / 4)), float(generator.normal())
    return ScanFrame(angle=angle) if moved == "turned" else ScanFrame(up_axis, unit=unit, angle=angle, floor=floor)


def answers_of(
    model: SpatialLMForConditionalGeneration,
    processor: SpatialLMProcessor,
    rows: Dataset,
    *,
    control: str | None = None,
    moved: str | None = None,
    align: bool = False,
    grammar: bool = False,
    generate: Mapping[str, Any] | None = None,
) -> list[Layout]:
    """Return what a model writes of rooms, in the frame of the rooms as they were made.

    Args:
        model: The model.
        processor: Its processor.
        rows: Rows of `rooms_with_layouts`.
        control: "no points", all features of the clouds zero, or "another room".
        moved: Whether the rooms are "turned" about the vertical, or moved in "all" ways: turned, on their side, in
            another unit and shifted.
        align: Whether they are aligned when they are read.
        grammar: Whether answers are held to the grammar.
        generate: Further arguments of `generate`.
    """
    frames = [moved_frame(number, moved) for number in range(len(rows))]
    clouds = [frame.undo(np.asarray(points, float)) for frame, points in zip(frames, rows["points"], strict=True)]
    if control == "another room":
        clouds = [*clouds[1:], clouds[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scans in millimeters that are not aligned are too long
        rooms = processor.read(clouds, align=align)
    texts: list[str] = []
    torch.manual_seed(0)
    for start in range(0, len(rooms), BATCH):
        inputs = processor(rooms[start : start + BATCH])
        own: dict[str, Any] = dict(generate or {"do_sample": False})
        if control == "no points":
            with torch.no_grad():
                features = model.get_point_features(*(inputs.pop(name) for name in model.cloud_inputs))
            inputs["point_features"] = [torch.zeros_like(cloud) for cloud in features]
        if grammar:
            own["logits_processor"] = processor.grammar(max_new_tokens=MOST_TOKENS)
        answers = cast(Any, model).generate(**inputs, max_new_tokens=MOST_TOKENS, **own)
        texts += processor.answer_texts(answers[:, inputs["input_ids"].shape[1] :])
    found = [processor.in_frame(Layout.parse(text), room) for text, room in zip(texts, rooms, strict=True)]
    # Back from the frame of the moved room.
    return [_undone(layout, frame) for layout, frame in zip(found, frames, strict=True)]


def judge(
    model: SpatialLMForConditionalGeneration, processor: SpatialLMProcessor, rows: Dataset, **given: Any
) -> dict[str, Any]:
    """Return F1 of walls, doors, windows and objects, and shares of answers with lines that were lost.

    Arguments are those of `answers_of`.
    """
    found = answers_of(model, processor, rows, **given)
    return {
        **figures_of(found, [Layout.parse(text) for text in rows["layout"]]),
        "malformed": float(np.mean([bool(layout.dropped) for layout in found])),
        "lines_lost": float(np.mean([len(layout.dropped) for layout in found])),
        "entities": float(np.mean([len(layout.entities) for layout in found])),
        "rooms": len(rows),
    }


def figures_of(found: Sequence[Layout], truths: Sequence[Layout]) -> dict[str, float]:
    """Return F1 of the counts of all rooms, for walls, doors, windows, chairs and the mean of all objects."""
    scores = score_layouts(found, truths)
    objects = [score.pooled_f1 for name, score in scores.items() if name not in ("wall", "door", "window")]
    objects = [pair for pair in objects if not math.isnan(pair[0])]
    figures = {name: scores[name].pooled_f1 for name in ("wall", "door", "window", "chair") if name in scores}
    figures["objects"] = np.mean(objects, axis=0).tolist()
    return {f"{name}_{level}": pair[at] for name, pair in figures.items() for at, level in enumerate((25, 50))}


def _undone(layout: Layout, frame: ScanFrame) -> Layout:
    if layout.up_axis != frame.up_axis:  # its walls lie
        return Layout(dropped=layout.dropped)
    layout = layout.with_up_axis("z").scaled(frame.unit)
    layout = layout.rotated(-frame.angle) if frame.angle else layout
    return layout.translated((0, 0, -frame.floor))


def draw(path: Path, rows: Dataset, found: Sequence[Layout]) -> None:
    """Write a picture of rooms: above with their own lines, below with those of answers."""
    truths = [Layout.parse(text) for text in rows["layout"]]
    names = ["wall", "door", "window", *rows.features["box_labels"].feature.names]
    colors = dict(zip(names, label_colors(len(names)), strict=True))
    views = []
    for title, layouts in (("as it was made", truths), ("as the model writes it", found)):
        for number, (points, layout) in enumerate(zip(rows["points"], layouts, strict=True)):
            points = np.asarray(points, float)
            edges = [box_edges(corners, 60) for corners in layout.corners()]
            _, labels = layout.as_boxes()
            parts = [np.full((len(points), 3), 0.75), *(np.tile(colors[label], (720, 1)) for label in labels)]
            views.append(
                CloudView(np.concatenate([points, *edges]), np.concatenate(parts), title=f"room {number}, {title}")
            )
    legend = {name: color.tolist() for name, color in colors.items()}
    plot_views(views, path, columns=len(rows), up_axis="z", legend=legend, elevation=50, cell=2.6)


def main(words: Sequence[str] | None = None) -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/layouts"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--run", choices=list(RUNS), default="third")
    parser.add_argument(
        "--conditions", nargs="*", choices=list(CONDITIONS), default=list(CONDITIONS), help="none: train alone"
    )
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    run = RUNS[options.run]
    splits = load_point_dataset("rooms_with_layouts", **run["rooms"])
    processor, table = build_processor(splits), []
    place = options.output_dir / options.run
    settings = json.loads(json.dumps({**run, "text": TEXT, "turns": TURNS, "between": BETWEEN_RANGE}))
    for seed in options.seeds:
        folder = place / f"seed-{seed}"
        if "continues" in run and not folder.is_dir():
            before = checkpoint_to_resume(options.output_dir / run["continues"] / folder.name)
            if before is None:
                raise FileNotFoundError(
                    f"run {run['continues']} has no checkpoint in {options.output_dir}; run it first"
                )
            shutil.copytree(before, folder / Path(before).name)
        trained = kept_run(
            place / f"trained-{seed}.json",
            settings,
            partial(train, folder, splits, processor, seed, run),
        )
        model = SpatialLMForConditionalGeneration.from_pretrained(folder).eval()
        for name in options.conditions:
            given = CONDITIONS[name]

            def judged(model: Any = model, given: dict[str, Any] = given) -> dict[str, Any]:
                with stopwatch() as spent:
                    found = judge(model, processor, splits["test"], **given)
                return {**found, **spent}

            path = place / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}.json"
            found = kept_run(path, {**settings, "given": given}, judged)
            shown = {key: value for key, value in found.items() if key != "settings"}
            table.append({"seed": seed, "condition": name, **shown, "train_cpu_seconds": trained["cpu_seconds"]})
            print(table[-1], flush=True)
        if options.conditions and seed == options.seeds[0]:
            rows = splits["test"].select(range(3))
            draw(place / "rooms.png", rows, answers_of(model, processor, rows))
    if not table:
        return
    with (place / "layouts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(
            {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            for row in table
        )


if __name__ == "__main__":
    main()
