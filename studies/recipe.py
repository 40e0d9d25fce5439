"""Search for a better recipe of the quickstart on validation parts of the training shapes.

    python -m studies.recipe --threads 1
    python -m studies.recipe --round 2
    python -m studies.recipe --round 3
    python -m studies.recipe --round 4
    python -m studies.recipe --round 5
    python -m studies.recipe --test

Eight changes of the recipe are tried together in 16 runs, a fractional factorial design of resolution IV: each change
is made in one half of the runs, and each pair of changes in a quarter of them. So the effect of a change is a
difference of means over eight runs, which as many runs of one change at a time would estimate with four to five times
the variance; what it does not show is which pairs of changes help or hinder each other. There are two such rounds,
with eight changes of the same recipe each. The third starts from what they have chosen, and makes four changes whose
opposites were harmful, in eight runs. The fourth adds the points' normals to what they have chosen and to the starting
weights that another study has chosen (`starting_weights`), in four pairs of runs. The fifth makes four changes around
these weights, in eight runs, and also tries other votes: copies scaled more, or augmented as in training, ten and 30.

The rule: a change is adopted if it lowers the cross-entropy of averaged weights with ten votes by more than its
standard error and does not lower the accuracy; one that makes runs longer by more than a quarter must also raise the
accuracy by a point. Other votes are adopted if over the runs of the fifth round they lower the cross-entropy of the
last weights by more than its standard error against ten votes, and do not lower the accuracy. `--test` then trains
with the recipe before the search and those that were adopted since (`RECIPES`); it evaluates all of them on the test
shapes, with five seeds that chose nothing.

A seed draws the validation part, a quarter of the training shapes in whole groups of near-duplicates, as well as
weights, row order and augmentation. Two or four runs share a seed, and no effect depends on the differences between
seeds. Each run is evaluated in four ways: the last weights or an exponential moving average of the weights, once or as
ten votes of scaled clouds. The search never reads the test shapes. Every run is stored when it ends and is not
repeated with the same settings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from examples import quickstart
from hf_any3d.data import PointCloudCollator, load_point_dataset, validation_split
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from hf_any3d.training.recipes import merge
from studies import earlier_recipe, recipe_report
from studies.recipe_report import Factors, Run
from studies.runs import kept_run, percent, stopwatch, use_threads, write_results

FRACTION = 0.25
DECAY = 0.99
"""Of the moving average, for each step."""
VOTES = 10

BASE: dict[str, Any] = {
    "model": earlier_recipe.MODEL,
    "adapter": earlier_recipe.ADAPTER,
    "augmentation": earlier_recipe.AUGMENTATION,
    "training": earlier_recipe.TRAINING,
    "smoothing": earlier_recipe.LABEL_SMOOTHING,
    "evaluation": {"fraction": FRACTION, "decay": DECAY, "votes": VOTES, "voting": quickstart.VOTE_AUGMENTATION},
}
"""The recipe before the search."""

_MILD = ["shuffle", "scale:low=0.8,high=1.25,per_axis=true", "shift:limit=0.1", "jitter"]


class Round(NamedTuple):
    """A part of the search.

    Attributes:
        factors: Title and settings of each change; mappings are merged, lists of `more_augmentation` added, other
            values replaced.
        first_seed: First of the seeds.
        start: Changes that all runs have, chosen by earlier rounds.
    """

    factors: Factors
    first_seed: int
    start: tuple[str, ...] = ()


_FIRST: Factors = {
    "epochs": ("60 epochs instead of 30", {"training": {"num_train_epochs": 60}}),
    "tokens": ("64 tokens instead of 32", {"model": {"num_tokens": 64}}),
    "layers": ("four encoder layers instead of two", {"model": {"num_layers": 4}}),
    "gate": ("gates from 0.5 instead of 0.2", {"adapter": {"gate": 0.5}}),
    "rate": ("learning rate 1e-3 instead of 2e-3", {"training": {"learning_rate": 1e-3}}),
    "mild": ("milder scaling, 0.8 to 1.25 instead of 0.67 to 1.5", {"augmentation": _MILD}),
    "width": ("tokenizer of width 64 instead of 96", {"model": {"tokenizer_width": 64}}),
    "smoothing": ("label smoothing 0.2 instead of 0.1", {"smoothing": 0.2}),
}
_SECOND: Factors = {
    "mix": ("half of the batches mixed from two shapes each", {"mixed_share": 0.5}),
    "turned": ("turned by up to 15 degrees", {"more_augmentation": ["rotate:axis=y,limit=0.26"]}),
    "dropped": ("up to half of the points dropped", {"more_augmentation": ["dropout:max_ratio=0.5"]}),
    "dropout": ("dropout of 0.5 in the head instead of 0.3", {"model": {"head_dropout": 0.5}}),
    "decay": ("weight decay 0.2 instead of 0.05", {"training": {"weight_decay": 0.2}}),
    "fast": ("learning rate 4e-3 instead of 2e-3", {"training": {"learning_rate": 4e-3}}),
    "layer": ("one encoder layer instead of two", {"model": {"num_layers": 1}}),
    "neighbors": ("16 neighbors in a patch instead of 32", {"model": {"tokenizer_neighbors": 16}}),
}
_THIRD: Factors = {
    "sharp": ("label smoothing 0.05 instead of 0.1", {"smoothing": 0.05}),
    "wide": ("tokenizer of width 128 instead of 96", {"model": {"tokenizer_width": 128}}),
    "large": ("48 neighbors in a patch instead of 32", {"model": {"tokenizer_neighbors": 48}}),
    "certain": ("dropout of 0.1 in the head instead of 0.3", {"model": {"head_dropout": 0.1}}),
}
ADOPTED: tuple[str, ...] = ("epochs", "tokens", "fast", "layer")
"""Changes that the rule chose in the first two rounds."""
_STARTING: Factors = {
    "weights": (
        "tokenizer weights learned on generated shapes",
        {"model": {"tokenizer_weights": "generated_shapes"}},
    )
}
"""Chosen by another study, `starting_weights`."""
_OTHER_VOTES: Factors = {
    "other-votes": (
        "other votes, of the last weights",
        {
            "evaluation": {
                "other_votes": {
                    "scaled more": ["shuffle", "scale:low=0.67,high=1.5,per_axis=true"],
                    "as in training": earlier_recipe.AUGMENTATION,
                },
                "more_votes": 30,
            }
        },
    )
}
"""Changes only how runs are evaluated."""
_NORMALS: Factors = {
    "normals": ("normals of the points", {"features": ["xyz", "normals"], "model": {"in_channels": 6}}),
}
_FIFTH: Factors = {
    "slow": ("learning rate 2e-3 instead of 4e-3", {"training": {"learning_rate": 2e-3}}),
    "dense": ("128 tokens instead of 64", {"model": {"num_tokens": 128}}),
    "stretched": (
        "stronger scaling, 0.5 to 2 instead of 0.67 to 1.5",
        {"augmentation": ["shuffle", "scale:low=0.5,high=2,per_axis=true", "shift:limit=0.1", "jitter"]},
    ),
    "turned": _SECOND["turned"],
}
ROUNDS = (
    Round(_FIRST, first_seed=0),
    Round(_SECOND, first_seed=4),
    Round(_THIRD, first_seed=8, start=ADOPTED),
    Round(_NORMALS, first_seed=12, start=(*ADOPTED, "weights")),
    Round(_FIFTH, first_seed=16, start=(*ADOPTED, "weights", "other-votes")),
)
_CHANGES = {
    name: own
    for factors in (*(search.factors for search in ROUNDS), _STARTING, _OTHER_VOTES)
    for name, (_, own) in factors.items()
}
"""Settings of every change."""
RECIPES: dict[str, tuple[str, ...]] = {
    "before the search": (),
    "adopted changes": ADOPTED,
    "adopted changes and starting weights": (*ADOPTED, "weights"),
    "adopted changes, starting weights and stronger scaling": (*ADOPTED, "weights", "stretched"),
}
"""What is compared on the test shapes; the last one is the quickstart's."""
TEST_SEEDS = range(20, 25)

_BITS = {
    1: ((0,),),
    4: ((0,), (1,), (2,), (0, 1, 2)),
    8: ((0,), (1,), (2,), (3,), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)),
}
"""Bits of a run's number whose parity decides about each of one, four or eight changes: odd sets, so that no effect is
that of a pair."""
_SEED_BITS = {1: ((1,), (2,)), 4: ((0, 1),), 8: ((2, 3), (0, 1))}
"""The same for the seed's bits, from the lowest: other sets, so that no effect is a difference between seeds."""


def design(search: Round) -> list[Run]:
    """List the changes and the seed of each run of a round, eight runs or 16."""
    names, runs = list(search.factors), []

    def parity(number: int, bits: tuple[int, ...]) -> int:
        return sum(number >> bit & 1 for bit in bits) % 2

    bits_used = {bit for bits in (*_BITS[len(names)], *_SEED_BITS[len(names)]) for bit in bits}
    for number in range(2 ** len(bits_used)):
        own = (name for name, bits in zip(names, _BITS[len(names)], strict=True) if parity(number, bits))
        seed = sum(parity(number, bits) << place for place, bits in enumerate(_SEED_BITS[len(names)]))
        runs.append(((*search.start, *own), search.first_seed + seed))
    return runs


def settings_of(changes: Iterable[str]) -> dict[str, Any]:
    """Collect everything but the seed that affects the result of a run with some changes, as JSON reads it back."""
    settings = BASE
    for change in changes:
        own = _CHANGES[change]
        more = settings.get("more_augmentation", []) + own.get("more_augmentation", [])
        settings = merge(settings, own) | ({"more_augmentation": more} if more else {})
    return json.loads(json.dumps(settings))


def build_model(settings: Mapping[str, Any], seed: int, names: list[str]) -> PeftModel:
    """Build the quickstart's model with changed settings."""
    wrapper: Any2PointForPointCloudClassification = quickstart.build_wrapper(seed, names, **settings["model"])
    return quickstart.add_adapter(wrapper, seed, **settings["adapter"])


class MixedBatches:
    """Collate a batch, and replace points of each cloud by points of another one (PointCutMix-R, arXiv 2101.01461).

    Args:
        collator: Collates rows to `points` `(batch, points, channels)` and `labels` `(batch,)`.
        share: Share of the batches that are mixed. Of a mixed one, a share of the points of each cloud, uniform in 0
            to 1 and the same for all, comes from another cloud; their labels are mixed accordingly.
        num_classes: Labels of all batches become `(batch, num_classes)` probabilities.
    """

    def __init__(self, collator: PointCloudCollator, share: float, num_classes: int):
        self.collator, self.share, self.num_classes = collator, share, num_classes

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate and mix rows."""
        batch = self.collator(rows)
        labels = nn.functional.one_hot(batch["labels"], self.num_classes).float()  # (batch, classes)
        if torch.rand(()) < self.share:
            points = batch["points"]
            other = torch.randperm(len(points))
            count = int(torch.randint(points.shape[1] + 1, ()))  # points that remain
            # The recipe shuffles points, so that both parts are random samples of their clouds.
            batch["points"] = torch.cat([points[:, :count], points[other, count:]], dim=1)
            kept = count / points.shape[1]
            labels = kept * labels + (1 - kept) * labels[other]
        return {**batch, "labels": labels}


class MovingAverage(TrainerCallback):
    """Average the trained weights of a model over the steps, the last ones most.

    Buffers are those of the last step: running variances of small numbers start a thousand times too large, and an
    average would remember that. `torch.optim.swa_utils.AveragedModel` with buffers averages integers too, and rounds
    them down: a text encoder's positions would change.

    Args:
        decay: Share of the average that remains at each step.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.weights: dict[str, torch.Tensor] = {}
        """Averaged weights, and all other tensors of the last step, as `load_state_dict` takes them."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the weights of this step."""
        assert model is not None
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, value in model.state_dict().items():
            if name in self.weights and name in trained:
                self.weights[name].lerp_(value, 1 - self.decay)
            else:
                self.weights[name] = value.clone()


def train_once(
    changes: Iterable[str],
    seed: int,
    output_dir: Path,
    split: str = "validation",
    start: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Train with some changes, and evaluate on a validation part or on the test shapes.

    Args:
        changes: Names of the changes.
        seed: Seed of everything.
        output_dir: Where `Trainer` may write.
        split: "validation" or "test".
        start: Tensors of the model to start from instead of random ones, by name.

    Returns:
        Figures of each of `recipe_report.WAYS`, those of other votes if the settings name some, loss and time.

    Raises:
        ValueError: If the model has no tensor of such a name.
    """
    settings = settings_of(changes)
    parts = load_point_dataset("shapes")
    rows = parts["train"]
    if split == "validation":
        parts = validation_split(rows, FRACTION, seed, group_column="group")
    features = settings.get("features", quickstart.POINTS_ALONE)
    model = build_model(settings, seed, rows.features["label"].names)
    if unknown := model.load_state_dict(start or {}, strict=False).unexpected_keys:
        raise ValueError(f"start: the model has no tensor {unknown[0]!r}")

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        return quickstart.smoothed_loss(outputs, labels, num_items_in_batch, smoothing=settings["smoothing"])

    average = MovingAverage(DECAY)
    trainer = quickstart.build_trainer(
        model,
        quickstart.training_arguments(output_dir / "trainer", seed, **settings["training"]),
        parts["train"],
        settings["augmentation"] + settings.get("more_augmentation", []),
        features,
    )
    trainer.compute_loss_func = loss
    trainer.add_callback(average)
    trainer.remove_callback(PrinterCallback)
    collator = PointCloudCollator(extra_columns=quickstart.columns_of(features))
    if share := settings.get("mixed_share"):
        trainer.data_collator = MixedBatches(collator, share, rows.features["label"].num_classes)
    with stopwatch() as spent:
        train_loss = trainer.train().training_loss
    trainer.args.dataloader_drop_last = False
    trainer.data_collator = collator
    figures: dict[str, Any] = {}
    for one, many in (("last", "votes"), ("averaged", "both")):
        if one == "averaged":
            model.load_state_dict(average.weights)
        plain = trainer.predict(quickstart.plain_rows(parts[split], features))
        figures[one] = scores(plain.predictions, plain.label_ids)
        # The copies are the same for both weights.
        figures[many] = scores(quickstart.vote(trainer, parts[split], seed, VOTES, features), plain.label_ids)
        if one == "last" and "other_votes" in settings["evaluation"]:
            figures["other_votes"] = try_votes(trainer, parts[split], seed, settings["evaluation"], features)
    shapes = {name: len(parts[name]) for name in ("train", split)}
    return {**figures, "accuracy": figures["last"]["accuracy"], "train_loss": train_loss, "shapes": shapes, **spent}


def try_votes(
    trainer: Trainer, rows: Dataset, seed: int, evaluation: Mapping[str, Any], features: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Compute `recipe_report.FIGURES` of other kinds and numbers of votes than the quickstart's.

    Args:
        trainer: Holds the model.
        rows: Rows of a split.
        seed: Seed of the copies.
        evaluation: `votes`, the usual number, and `more_votes`; `voting`, transforms of the usual copies, and
            `other_votes`, those of other ones by name.
        features: Channels of a point.
    """
    usual, more = evaluation["votes"], evaluation["more_votes"]
    found = {}
    for name, augmentation in {"scaled": evaluation["voting"], **evaluation["other_votes"]}.items():
        copies = quickstart.augmented_rows(rows, augmentation, features)
        torch.manual_seed(seed)
        answers = [trainer.predict(copies) for _ in range(more)]
        logits = np.stack([answer.predictions for answer in answers])  # (votes, rows, classes)
        for count in (usual, more):
            found[f"{name}, {count}"] = scores(logits[:count].mean(axis=0), answers[0].label_ids)
    return found


def scores(logits: Any, labels: Any) -> dict[str, float]:
    """Compute `recipe_report.FIGURES` of logits `(shapes, classes)`."""
    found = compute_classification_metrics(EvalPrediction(logits, labels))
    loss = nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    return {**found, "loss": float(loss)}


def named(changes: Iterable[str]) -> str:
    """Name a run by its changes."""
    return "+".join(changes) or "recipe"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/recipe"), help="folder for all results")
    parser.add_argument("--round", type=int, default=1, choices=range(1, len(ROUNDS) + 1), help="which changes to try")
    parser.add_argument("--test", action="store_true", help="compare recipes on the test shapes")
    parser.add_argument("--runs", nargs="+", type=int, help="only do these runs, by number from 0, without a table")
    parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the search; print and store its table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    search, stored = ROUNDS[options.round - 1], []
    runs = design(search)
    folder, split = options.output_dir / "runs", "validation"
    if options.test:
        runs = [(changes, seed) for seed in TEST_SEEDS for changes in RECIPES.values()]
        folder, split = options.output_dir / "test_runs", "test"
    for number in tqdm(range(len(runs)) if options.runs is None else options.runs, desc="runs"):
        changes, seed = runs[number]

        def run(changes: tuple[str, ...] = changes, seed: int = seed) -> dict[str, Any]:
            return {"changes": changes, "seed": seed, **train_once(changes, seed, options.output_dir, split)}

        stored.append(kept_run(folder / f"{named(changes)}-{seed}.json", settings_of(changes), run))
        last = stored[-1]["last"]
        tqdm.write(
            f"{named(changes)}, seed {seed}: {percent(last, 'accuracy')} %, {stored[-1]['cpu_seconds']:.0f} CPU s"
        )
    if options.runs is not None:
        return
    if options.test:
        summary = recipe_report.compare(stored, RECIPES)
        write_results(options.output_dir, "recipe_test", summary | {"runs": stored}, recipe_report.comparison(summary))
        return
    summary = recipe_report.summarize(stored, search.factors)
    write_results(
        options.output_dir, f"recipe_{options.round}", summary | {"all_runs": stored}, recipe_report.table(summary)
    )


if __name__ == "__main__":
    main()
