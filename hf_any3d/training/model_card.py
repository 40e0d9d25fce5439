"""The model card of a trained model, filled from the report of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig, Trainer

from hf_any3d.training.card_methods import MethodWords, method_words
from hf_any3d.training.card_tasks import CLASSIFICATION, CardTask
from hf_any3d.training.protocol import TEST_CHOOSES
from hf_any3d.training.report import RunReport
from hf_any3d.whole_files import write_text

_CARD = """\
# {title}

{intro} {what} {parameters}

## How to use it

```bash
pip install hf-any3d
```

```python
import hf_any3d  # lets transformers and PEFT know these models
from transformers import pipeline

{use}
```

A path, a mesh, an array `(points, {channels})`, a list or a dataset column of them go in; {portions}
{as_model}:

```python
import hf_any3d
from hf_any3d import {auto_class}, {processor}

model = {auto_class}.from_pretrained("{name}")
processor = {processor}.from_pretrained("{name}")
{logits}
```
{peft_door}
## Results

{results}

{selection} One run with seed {seed}; other seeds give other figures.

## Data

{data}{classes}

## Training

{training}
{limits}
Made with hf_any3d ({versions}).
"""

_PEFT_DOOR = """
As an adapter, to be switched, disabled or put beside others:

```python
import hf_any3d
from hf_any3d import {model_class}
from peft import PeftModel
from transformers import AutoConfig

config = AutoConfig.from_pretrained("{name}")
base = {model_class}.{builds_base}
model = PeftModel.from_pretrained(base, "{name}").eval()
```
"""


def build_model_card(
    report: RunReport,
    config: PreTrainedConfig,
    name: str,
    *,
    num_points: int,
    task: CardTask = CLASSIFICATION,
    license: str | None = None,
) -> ModelCard:
    """Write the card of a model that a training program made.

    Args:
        report: What a program of `examples/`, such as `run_point_cloud_classification.py`, stores as metrics.json.
        config: The model's config.
        name: The repository's name, or the directory, that the card's examples load.
        num_points: Points of a cloud that the processor gives.
        task: What the model does.
        license: Licence of the model, as the hub writes it; left out where nobody says.
    """
    classes = [config.id2label[number] for number in sorted(config.id2label)] if task.has_classes else []
    method = report.adapter.get("method")
    words = method_words(report, config)
    text = _CARD.format(
        title=name.rsplit("/", 1)[-1],
        name=name,
        intro=task.intro.format(count=len(classes)),
        use=task.use.format(name=name, category=(getattr(config, "category_names", None) or [""])[0]),
        channels=config.in_channels,
        portions=task.portions.format(num_points=num_points),
        as_model=task.as_model,
        processor=task.processor,
        auto_class=task.auto_class,
        logits=task.logits.format(count=len(classes), num_points=num_points),
        what=words.what,
        parameters=words.parameters,
        peft_door=_peft_door(name, words, task) if method else "",
        results=_results(report.metrics, task) + _by_class(report.class_accuracy.get("test", {}), task),
        selection=_selection(report),
        seed=report.training["seed"],
        data=_facts(report.data),
        classes=f"\n\nClasses: {', '.join(classes)}." if classes else "",
        training=_facts(_training_facts(report)),
        limits=_limits(config) + task.limits,
        versions=", ".join(f"{package} {version}" for package, version in report.versions.items()),
    )
    return ModelCard(f"---\n{_metadata(report, name, words, task, license).to_yaml()}\n---\n\n{text}")


def _peft_door(name: str, words: MethodWords, task: CardTask) -> str:
    return _PEFT_DOOR.format(
        name=name,
        model_class=words.models + task.model_class.removeprefix("Any2Point"),
        builds_base=words.builds_base.format(name=name),
    )


def keep_model_card(trainer: Trainer, card: ModelCard) -> None:
    """Let `trainer.create_model_card()`, and with it `trainer.push_to_hub()`, write this card.

    Pushing first saves the model, whereupon PEFT edits the README.md that it finds, and then has the trainer write
    a general one over it; so this is the one place to put a card of one's own.
    """
    path = Path(trainer.args.output_dir) / "README.md"

    def create_model_card(*args: Any, **kwargs: Any) -> None:
        if trainer.is_world_process_zero():
            write_text(path, str(card))

    trainer.create_model_card = create_model_card


def _metadata(report: RunReport, name: str, words: MethodWords, task: CardTask, license: str | None) -> ModelCardData:
    on_hub = report.data.get("on_hub", False)
    dataset = report.data["name"]
    judged = {split: metrics for split, metrics in report.metrics.items() if split in ("validation", "test")}
    results = [
        EvalResult(
            task_type=task.task,
            task_name=task.task_name,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=split,
            metric_type=metric,
            metric_name=task.metrics[metric],
            metric_value=metrics[metric],
        )
        for split, metrics in judged.items()
        for metric in task.metrics
        if metric in metrics
    ]
    method = report.adapter.get("method")
    return ModelCardData(
        library_name="transformers",
        license=license,
        pipeline_tag=task.task,
        base_model=words.base_model,
        base_model_relation=words.relation if words.base_model else None,
        datasets=[dataset] if on_hub else None,
        metrics=[next(iter(task.metrics))],
        tags=["hf_any3d", *words.tags, "point-cloud", "3d", *([method] if method else [])],
        model_name=name.rsplit("/", 1)[-1],
        eval_results=results or None,
    )


def _results(metrics: dict[str, dict[str, float]], task: CardTask) -> str:
    rows = [f"| {split} | {_row(values, task)} |" for split, values in metrics.items() if split != "train"]
    if not rows:
        return "The run judged no split."
    head = ["split", *task.metrics.values(), "loss"]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


def _row(values: dict[str, float], task: CardTask) -> str:
    shares = [task.shown(metric, values[metric]) if metric in values else "" for metric in task.metrics]
    return " | ".join([*shares, f"{values['loss']:.3f}" if "loss" in values else ""])


def _by_class(scores: dict[str, float], task: CardTask) -> str:
    if not scores:
        return ""
    shares = ", ".join(f"{name} {task.shown_of_class(score)}" for name, score in scores.items())
    return f"\n\nTest split, {task.class_score}: {shares}."


def _selection(report: RunReport) -> str:
    selection = report.selection
    if not selection:
        return "The weights are those of the last step."
    which = f"The weights are those of step {selection['step']}, which gave the best {selection['metric']} "
    if report.data.get("validation") == TEST_CHOOSES:
        return which + (
            f"({selection['value']:.4g}) on the test split itself: these figures are better than those on unseen "
            "clouds would be."
        )
    return which + f"({selection['value']:.4g}) on the validation split; the test split selected nothing."


def _training_facts(report: RunReport) -> dict[str, Any]:
    encoder = {f"encoder {key}": value for key, value in report.encoder.items()}
    start = {f"start, {key}": value for key, value in report.start.items()}
    settings = report.adapter.get("settings")
    memory = {f"peak memory, {where}": f"{size / 1e6:,.0f} MB" for where, size in report.peak_memory.items()}
    share = report.trained_parameters / report.total_parameters
    return {
        **encoder,
        **start,
        "adapter": report.adapter.get("method", "none"),
        "adapter settings": settings or None,
        "trained parameters": f"{report.trained_parameters:,} of {report.total_parameters:,} ({100 * share:.2f} %)",
        **report.training,
        **{f"seconds, {part}": f"{seconds:,.0f}" for part, seconds in report.seconds.items()},
        **memory,
    }


def _facts(facts: dict[str, Any]) -> str:
    told = {key: value for key, value in facts.items() if key != "on_hub" and value not in (None, "", [], {})}
    shown = {key.replace("_", " "): _plain(value) for key, value in told.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in shown.items())])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _limits(config: PreTrainedConfig) -> str:
    dependent = getattr(config, "batch_dependent_flags", ())
    if not dependent:
        return ""
    flags = ", ".join(f"`{flag}`" for flag in dependent)
    return f"\n**Predictions depend on the other clouds of a batch**: {flags} reproduce a released program.\n"
