"""Check the needs of a published table before the first training: data, encoders, starting points and judges."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from examples.repeat.published_tables import CHAT, PICTURES, QUESTIONS, WEIGHTS, PublishedRow, Step
from examples.repeat.table_questions import JUDGES
from examples.repeat.table_weights import WeightsArguments, load_test_split
from hf_any3d.data import load_point_dataset
from hf_any3d.evaluation.question_answering import find_protocol
from hf_any3d.hub.published_table import is_published
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.folds import words_of
from hf_any3d.training.requests import build_arguments, read_words
from hf_any3d.training.splits import load_splits
from hf_any3d.utils.messages import error_lines

if TYPE_CHECKING:
    from examples.repeat.reproducing import Plan

# Arguments that name models which a step starts from, "none" aside.
_MODELS = ("model_name_or_path", "encoder_name_or_path", "teacher", "point_encoder", "qformer", "language_model")


def check_needs(plan: Plan, rows: Mapping[str, PublishedRow]) -> None:
    """Check that data, encoders and starting points of all rows are there.

    Raises:
        FileNotFoundError: Something is missing; its notes name each thing, in a line each, and the rows that need it.
    """
    missing: dict[str, list[str]] = {}
    for name, row in rows.items():
        for problem in _problems(plan, row):
            found = missing.setdefault(problem, [])
            if name not in found:
                found.append(name)
    if missing:
        error = FileNotFoundError("not started, since something is missing; --dry-run needs nothing")
        for problem, names in missing.items():
            error.add_note(f"{', '.join(names) if len(names) < len(rows) else 'all rows'}: {problem}")
        raise error


def _problems(plan: Plan, row: PublishedRow) -> Iterator[str]:
    for number, step in enumerate(plan.steps_of(row)):
        settings = plan.settings_of(step)
        if plan.data_dir is not None:
            settings["data_dir"] = plan.data_dir
        is_last = step is row.steps[-1]
        if is_last:
            settings |= _given_settings(plan.words)
        if plan.start is not None:
            settings[step.start or "model_name_or_path"] = plan.start
        elif number > 0 and step.start is not None:
            settings.pop(step.start, None)
        if step.program == WEIGHTS and plan.start is not None:
            # In place of what the name stands for, which is not fetched then.
            del settings["model_name_or_path"]
            if not Path(plan.start).exists():
                yield f"{plan.start}: no such file or directory"
        for name in _MODELS:
            model = settings.get(name)
            if model in (None, "none"):
                continue
            if problem := _model_problem(str(model), row.needs):
                yield problem
        found = [_data_problem(step, row, settings, plan.words if is_last else ())]
        found += [_judge_problem(settings)]
        yield from (problem for problem in found if problem is not None)


def _given_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the models and judges that further arguments name."""
    found: dict[str, Any] = {name: words[words.index(f"--{name}") + 1] for name in _MODELS if f"--{name}" in words}
    return {**found, **({"judges": words_of(words, ["judges"])[1:]} if "--judges" in words else {})}


def _model_problem(name: str, needs: str) -> str | None:
    """Check the model that a step starts from; return a message, or None if it can be used."""
    if Path(name).is_dir():
        return None
    if Path(name).parts[0] == "outputs":
        return f"{name}: no such directory" + (f"; {needs}" if needs else "")
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError):
        download = f"; {needs}" if needs and is_published(name) else ""
        return f"{name} is not a directory, not in the cache and not reachable on the hub{download}"
    return None


def _data_problem(step: Step, row: PublishedRow, settings: Mapping[str, Any], words: Sequence[str]) -> str | None:
    """Load the data once, which converts and checks them; return a message, or None if they are complete."""
    try:
        if step.program == CHAT:
            _load_conversations(settings)
        elif step.program == QUESTIONS:
            _load_questions(settings)
        elif step.program == WEIGHTS:
            names = [field.name for field in fields(WeightsArguments)]
            load_test_split({**settings, **read_words((WeightsArguments,), words_of(words, names))})
        elif step.program != PICTURES:
            _load_clouds(row, settings, words)
    except (ValueError, OSError, ImportError) as error:
        return "; ".join(line.strip() for line in error_lines(error)[:2])  # and where to get what is missing
    return None


def _load_clouds(row: PublishedRow, settings: Mapping[str, Any], words: Sequence[str]) -> None:
    """Load the dataset of a training program, and that of its linear probe."""
    names = [field.name for field in fields(DataArguments)]
    own = {name: value for name, value in settings.items() if name in names}
    own |= read_words((DataArguments,), words_of(words, names))
    if row.way is not None:
        own["dataset_options"] = {"way": row.way, "shot": row.shot, "fold": 0}
    (data,) = build_arguments((DataArguments,), own)
    load_splits(data)
    if settings.get("probe_every") and "probe_dataset" in settings:
        load_splits(DataArguments(dataset_name=settings["probe_dataset"], data_dir=settings.get("data_dir")))


def _load_conversations(settings: Mapping[str, Any]) -> None:
    """Load the training conversations of a stage of MiniGPT-3D."""
    options = settings.get("dataset_options", {})
    for kind in settings["conversations"]:
        load_point_dataset(
            "objaverse_captions", data_dir=settings.get("data_dir"), which=kind, splits=["train"], **options
        )


def _load_questions(settings: Mapping[str, Any]) -> None:
    """Load the clouds that questions are about."""
    for name in settings["protocols"]:
        protocol = find_protocol(name)
        options = {**protocol.options, **settings.get("dataset_options", {})}
        load_point_dataset(protocol.dataset, data_dir=settings.get("data_dir"), split="test", **options)


def _judge_problem(settings: Mapping[str, Any]) -> str | None:
    """Return which judges at an endpoint have no key, or None."""
    at_endpoint = [name for name in settings.get("judges", ()) if name not in JUDGES and not name.startswith("local:")]
    variable = settings.get("judge_key_variable", "OPENAI_API_KEY")
    if at_endpoint and not os.environ.get(variable):
        return f"no key in {variable} for the judge {' and '.join(dict.fromkeys(at_endpoint))}; another: --judges NAME"
    return None
