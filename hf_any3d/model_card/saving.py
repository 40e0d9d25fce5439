"""Write model cards when a model is saved or pushed, by its own method, by PEFT or by a Trainer.

An existing README.md is replaced only if it is a card of this package that has not been edited (a comment at its end
holds a digest of it), or an untouched template of huggingface_hub, PEFT or Trainer.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from hf_any3d.model_card.building import build_model_card
from hf_any3d.model_card.run_report import RunReport, best_step, count_parameters, training_facts
from hf_any3d.model_card.subject import Subject, adapter_facts
from hf_any3d.utils.atomic_files import write_text
from hf_any3d.utils.markdown import one_line
from hf_any3d.utils.messages import shown_path

logger = logging.get_logger(__name__)

FILE = "README.md"
_TRAINER_TEMPLATE = (
    "This model card has been generated automatically according to the information the Trainer had access to"
)
_TRANSFORMERS_TEMPLATE = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
_MARK = re.compile(r"<!-- Written by hf_any3d \((\w+)\)[^>]*-->")
# Metadata that the hub's tools edit: they add tags and reformat scores.
_EDITED_BY_TOOLS = ("tags", "model-index")


def write_model_card(model: nn.Module, directory: str | os.PathLike, name: str | None = None) -> Path | None:
    """Write the card of a model that has just been saved in a directory; see `save_card`.

    `name` is its repository; None for the directory itself.
    """
    directory = Path(directory)
    return save_card(build_model_card(Subject.from_model(model), name or shown_path(directory)), directory / FILE)


def write_run_card(
    model: PreTrainedModel,
    report: RunReport,
    num_points: int,
    sure: str,
    directory: Path,
    license: str | None,
    place: Path,
) -> None:
    """Write the card of a model that was trained without a Trainer, then the report, which completes the run.

    `num_points` are those that its processor gives the model; `sure` is the text of the section "Confidence", and
    `place` where the files of the directory will be.
    """
    card = build_model_card(
        Subject.from_model(model, report, num_points),
        shown_path(place),
        license=license,
        sections={"Confidence": sure},
    )
    save_card(card, directory / FILE)
    report.save(directory / "metrics.json")


def save_card(card: ModelCard, path: str | os.PathLike) -> Path | None:
    """Write a card and return its path, or None if the file holds a card that a user has written, which is kept.

    Tags of a replaced card are kept; so are its license, language and datasets, unless the new card sets them. Beside
    it is written the main score on the test split of each dataset on the hub, in the form that the hub lists.
    """
    path = Path(path)
    if path.is_file():
        # A card in another encoding was not written here, and does not fit its mark then.
        text = path.read_text(encoding="utf-8", errors="replace")
        if not may_be_replaced(text):
            logger.info("%s was written or edited by hand, so it is kept", path)
            return None
        data = cast(ModelCardData, card.data)
        replaced = _parsed(text).data
        tags = replaced.get("tags")
        _add_tags(data, tags if isinstance(tags, list) else [])
        for key in ("license", "language", "datasets"):
            if replaced.get(key) and not getattr(data, key, None):
                setattr(data, key, replaced[key])
    scores = {}
    for result in card.data.get("eval_results") or ():
        # A name with an owner is on the hub, which lists nothing else.
        if "/" in result.dataset_type and result.dataset_split == "test":
            scores.setdefault(result.dataset_type, result)  # the first metric of a task is its main one
    for dataset, result in scores.items():
        entry = EvalResultEntry(dataset, "default", result.metric_value, notes=result.metric_name)
        scores_text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        write_text(path.parent / ".eval_results" / f"{dataset.replace('/', '_')}.yaml", scores_text)
    return write_text(path, sign_card(str(card)))


def add_section(path: str | os.PathLike, title: str, body: str) -> Path | None:
    """Add a section to a card of this package, or replace the one of this title; see `save_card`."""
    path = Path(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    # Templates of other libraries may be replaced as a whole, but have no such sections.
    if _MARK.search(text) is None or not may_be_replaced(text):
        return None
    # Sections come before the last line of a card.
    head, mark, end = text.rpartition("\nMade with hf_any3d (")
    # A section ends at the next one of its level.
    head = re.sub(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", "", head, flags=re.DOTALL)
    return write_text(path, sign_card(f"{head.rstrip()}\n\n## {title}\n\n{body.strip()}\n{mark}{end}"))


def _parsed(text: str) -> ModelCard:
    """Parse a card; scores that the hub would not show are ignored."""
    if REGEX_YAML_BLOCK.search(text) is None:
        text = f"---\n\n---\n{text}"  # ModelCard warns of cards without metadata
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (TypeError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of a card is damaged ({error})") from error


def _add_tags(data: ModelCardData, tags: Sequence[Any]) -> None:
    kept: list[str] = [*(data.tags or []), *map(one_line, tags)]
    data.tags = list(dict.fromkeys(kept)) or None


def sign_card(text: str) -> str:
    """Append the digest by which `may_be_replaced` recognizes an unedited card."""
    # An earlier mark is of an earlier text.
    text = _MARK.sub("", text).rstrip()
    return f"{text}\n\n<!-- Written by hf_any3d ({_digest(_parsed(text))}); an edited card is never overwritten. -->\n"


def may_be_replaced(text: str) -> bool:
    """Return whether a card is an unedited one of this package or an untouched template of another library."""
    try:
        card = _parsed(text)
    except ValueError:  # edited, with a mistake
        return False
    body = card.text
    # Repositories on the hub start with metadata alone.
    if not body.strip():
        return not set(card.data.to_dict()) - {"tags", "library_name", "base_model", "pipeline_tag"}
    marked = _MARK.search(body)
    if marked:
        # The digest is of the card without its mark.
        card.text = _MARK.sub("", body)
        return marked[1] == _digest(card)
    if _TRAINER_TEMPLATE in " ".join(body.split()):
        return True
    # The template that huggingface_hub, PEFT and transformers fill in, and what PEFT adds to it.
    template = ModelCard.from_template(ModelCardData(), model_description=_TRANSFORMERS_TEMPLATE).text
    filled_in = {"", "### Framework versions", *(line.strip() for line in template.splitlines())}
    return all(line.startswith("- PEFT ") for line in {line.strip() for line in body.splitlines()} - filled_in)


def write_trainer_card(
    trainer: Trainer,
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | list[str] | None = None,
    dataset_tags: str | list[str] | None = None,
    dataset: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
) -> Path | None:
    """Write the card of a trainer's model and its run; the arguments are those of `Trainer.create_model_card`.

    A trainer with an attribute `build_model_card`, a function without arguments that returns a card, gets that card.
    It is called when the card is written: saving may find that a pretrained part has changed, and store it. The card
    is named after its repository, not by `model_name`; `tasks` are further tags, as the class of the model has one.
    """
    # Of several processes one writes.
    if not trainer.is_world_process_zero():
        return None
    assert trainer.args.output_dir is not None  # has a default
    path = Path(trainer.args.output_dir) / FILE
    build = getattr(trainer, "build_model_card", None)
    if build is not None:
        card = build()
    else:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        # The name on the hub if the model is pushed, else that of its folder.
        name = trainer.hub_model_id or (path.parent.name if path.is_absolute() else os.fspath(path.parent))
        subject = Subject.from_model(model, report_of_trainer(trainer, _listed(dataset), _listed(dataset_args)))
        card = build_model_card(
            subject, name, license=getattr(trainer.args, "license", None), base_model=finetuned_from
        )
    data = cast(ModelCardData, card.data)
    # What is given wins over what the card says.
    data.license = one_line(license) if license else data.license
    data.language = language or data.language
    data.datasets = [one_line(tag) for tag in _listed(dataset_tags)] or data.datasets
    _add_tags(data, _listed(tags) + _listed(tasks))
    saved = save_card(card, path)
    if saved is None:
        logger.warning("%s was written or edited by hand, so it is kept and does not describe this run", path)
    return saved


def _listed(values: str | list[str] | None) -> list[str]:
    return [values] if isinstance(values, str) else list(values or ())


def report_of_trainer(trainer: Trainer, dataset: Sequence[str] = (), options: Sequence[str] = ()) -> RunReport:
    """Report the run of a stock Trainer.

    Evaluation losses with label smoothing, or of the user's own function, are labeled so: they are not the model's.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    inner = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    rows = {"train": trainer.train_dataset, "evaluation": trainer.eval_dataset}
    # Streams have no length.
    sizes = {split: len(split_rows) for split, split_rows in rows.items() if hasattr(split_rows, "__len__")}
    name = ", ".join(dataset) or getattr(getattr(trainer.train_dataset, "info", None), "dataset_name", None)
    trained, total = count_parameters(model)
    # Of the weights that were kept: the best ones, or the last.
    selection = best_step(trainer)
    # The metrics of the evaluation after this step, without the times that the Trainer measures
    step = selection.get("step", trainer.state.global_step)
    metrics = {}
    for entry in trainer.state.log_history:
        if entry.get("step") != step:
            continue
        for key, value in entry.items():
            is_time = key.endswith(("runtime", "per_second", "compilation_time"))
            if key.startswith("eval_") and isinstance(value, (int, float)) and not is_time:
                metrics[key.removeprefix("eval_")] = float(value)
    if trainer.compute_loss_func is not None:
        name_of_loss = "loss (of the trainer's own function)"
    else:
        is_smoothed = trainer.args.label_smoothing_factor and trainer.label_smoother is not None
        # Trainers of this package evaluate without smoothing.
        if is_smoothed and not getattr(trainer, "judges_by_plain_loss", False):
            name_of_loss = "loss (label-smoothed)"
        else:
            name_of_loss = "loss"
    if "loss" in metrics and name_of_loss != "loss":
        metrics[name_of_loss] = metrics.pop("loss")
    config = inner.config
    encoder = getattr(config, "encoder_name_or_path", None) or getattr(config, "encoder_trained_from", None)
    start = getattr(config, "base_name_or_path", None)
    return RunReport(
        data={"name": name, "options": list(options), "rows": sizes},
        encoder={"name": encoder} if encoder else {},
        adapter=adapter_facts(model),
        trained_parameters=trained,
        total_parameters=total,
        seconds={},
        peak_memory={},
        metrics={"evaluation": metrics} if metrics else {},
        class_accuracy={},
        selection=selection,
        training=training_facts(trainer),
        start={"model": start} if start else {},
    )


def _digest(card: ModelCard) -> str:
    kept = {key: value for key, value in card.data.to_dict().items() if key not in _EDITED_BY_TOOLS}
    # By lines, so that other line ends make no other card.
    whole = json.dumps([kept, card.text.strip().splitlines()], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:16]


def rename_card(folder: Path, repository: str) -> None:
    """Write the name of a repository where an unedited card has that of the directory; others stay as they are."""
    path = folder / FILE
    text = path.read_text(encoding="utf-8", errors="replace")
    # The place where the template of cards puts the name.
    example = re.search(r'pipeline\("[\w-]+", model="([^"]+)"', text)
    # A card that someone has edited is pushed as it is.
    if example is None or not may_be_replaced(text):
        return
    # The title is the last part of a name or path.
    title, new_title = (name.rstrip("/").rpartition("/")[2] for name in (example[1], repository))
    # Only these places, since the same word may stand in the text for something else.
    named = text.replace(f'"{example[1]}"', f'"{repository}"').replace(f"\n# {title}\n", f"\n# {new_title}\n")
    named = named.replace(f"\nmodel_name: {title}\n", f"\nmodel_name: {new_title}\n")
    if named != text:
        write_text(path, sign_card(named))
