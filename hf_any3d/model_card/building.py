"""Build a model card from the class and config of a model, its adapter, and the report of a run, if any."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from hf_any3d.markdown import code, inline, literal, one_line
from hf_any3d.model_card.run_report import TEST_CHOOSES, RunReport, package_versions
from hf_any3d.model_card.subject import Subject, hub_name
from hf_any3d.modeling.card_info import CardDescription, CardTask
from hf_any3d.modeling.published import non_commercial_record

_CARD = """\
# {title}

{intro} {what} {parameters}{remark}

## How to use it

```bash
pip install hf-any3d
```

```python
import hf_any3d  # registers these models with transformers and PEFT
from transformers import pipeline

{verb} = pipeline("{task}", model={name}{options})
{use}
```

Inputs are a path, a mesh, an array `(points, {channels})`, a list or a dataset column of them; {portions}
{as_model}:

```python
import hf_any3d
from hf_any3d import {auto_class}, {processor}

model = {auto_class}.from_pretrained({name})
processor = {processor}.from_pretrained({name})
{logits}
```
"""
_AS_ADAPTER = """
As an adapter, to be switched, disabled or combined with others:

```python
import hf_any3d
from hf_any3d import {model_class}
from peft import PeftModel
from transformers import AutoConfig

config = AutoConfig.from_pretrained({name})
base = {model_class}.{base_program}
model = PeftModel.from_pretrained(base, {name}).eval()
```
"""
_INCOMPLETE_ADAPTER = """\
This adapter is not a complete model: {left_out} were left out when it was saved. It works only on the exact model
that it was trained on:

```python
import hf_any3d  # registers these models with transformers and PEFT
from peft import PeftModel

model = PeftModel.from_pretrained(base, {name}).eval()  # base: the model that the adapter was trained on
```
"""
# Number of class names that a card lists; the config has all of them.
_MAX_CLASSES = 400
# Data entries of a report that only the metadata or metrics.json use.
_HIDDEN_DATA = ("on_hub", "files", "hub_type")


def build_model_card(
    subject: Subject,
    name: str,
    *,
    license: str | None = None,
    language: str | None = None,
    intro: str | None = None,
    remark: str = "",
    sections: Mapping[str, str] | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """Build the card of a model.

    Args:
        subject: The model and what is known of it.
        name: The repository's name, or the directory, that the card's examples load.
        license: Licence of the model, as the hub writes it. If None, that of published weights in the model which
            forbids commercial use; left out if there are none.
        language: Language of the model's answers, as the hub writes it.
        intro: Markdown that replaces the task's first sentence.
        remark: Markdown to add to the first paragraph.
        sections: Further sections, title to Markdown.
        base_model: What the model was made from; taken from the model by default.

    Raises:
        ValueError: If the model's class has no `card_info` or no `describe_for_card`.
    """
    task, report = subject.task, subject.report
    describe = getattr(subject.model_class, "describe_for_card", None)
    if describe is None:
        raise ValueError(f"{subject.model_class.__name__} has no describe_for_card; derive it from CardMixin")
    description: CardDescription = describe(subject)
    text = _usage(subject, name, description, intro, remark)
    if subject.left_out:
        text = text.partition("```python")[0] + _INCOMPLETE_ADAPTER.format(
            name=literal(name), left_out=", ".join(map(code, subject.left_out))
        )
    elif subject.method:
        text += _AS_ADAPTER.format(
            name=literal(name),
            model_class=subject.model_class.__name__,
            base_program=description.base_program.format(name=literal(name)),
        )
    if report:
        text += _report_sections(report, subject.classes, task)
    elif subject.classes:
        text += f"\n## Classes\n\n{_class_list(subject.classes)}\n"
    text += _limits(subject.config) + task.limits
    if record := non_commercial_record(subject.config):
        terms = inline(record["weights_license"])
        license = license or record["weights_license"].lower()
        origin = code(record["name"]) if record.get("name") else "published ones"
        body = f"This model was made from weights, {origin}, under {terms}, which forbids its commercial use too."
        sections = {"Licence": body, **(sections or {})}
    text += "".join(f"\n## {inline(title)}\n\n{body.strip()}\n" for title, body in (sections or {}).items())
    versions = report.versions if report else package_versions()
    shown = ", ".join(f"{inline(package)} {inline(version)}" for package, version in versions.items())
    text += f"\nMade with hf_any3d ({shown}).\n"
    metadata = _metadata(subject, name, description, license, language, base_model)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def _usage(subject: Subject, name: str, description: CardDescription, intro: str | None, remark: str) -> str:
    task, config, info = subject.task, subject.config, subject.info
    count = len(subject.classes)
    points = f"{subject.num_points} points" if subject.num_points else "the processor's number of points"
    categories = getattr(config, "category_names", None) or ["0"]
    auto_class = info.opens or task.auto_class
    return _CARD.format(
        title=inline(_title(name)),
        intro=intro or task.intro.format(count=count),
        what=description.what,
        parameters=_parameters(subject, description.stored),
        remark=f" {remark}" if remark else "",
        verb=task.verb,
        task=task.task,
        name=literal(name),
        # Predictions would depend on the other clouds of a batch.
        options=", batch_size=1" if getattr(config, "batch_dependent_flags", ()) else "",
        use=task.use.format(category=literal("Chair" if "Chair" in categories else categories[0])),
        channels=getattr(config, "point_config", config).in_channels,
        portions=task.portions.format(points=points),
        as_model="As a model with logits" if task.has_classes else "As a model",
        auto_class=auto_class,
        processor=task.processor,
        logits=task.logits.format(count=count),
    )


def _title(name: str) -> str:
    return one_line(name.rstrip("/").rsplit("/", 1)[-1] or "model")


def _parameters(subject: Subject, stored: str) -> str:
    report = subject.report
    total = report.total_parameters if report else subject.total_parameters
    if total is None:
        return f"{stored[0].upper()}{stored[1:]}"
    counted = f"It has {total:,} parameters"
    counted += f", of which {report.trained_parameters:,} were trained" if report else ""
    return f"{counted}; {stored}" if stored[0].islower() else f"{counted}. {stored}"


def _metadata(
    subject: Subject,
    name: str,
    description: CardDescription,
    license: str | None,
    language: str | None,
    base_model: str | None,
) -> ModelCardData:
    task, report = subject.task, subject.report
    base_model = hub_name(base_model) or hub_name(description.base_model)
    data = report.data if report else {}
    dataset = hub_name(data.get("name")) if data.get("on_hub") else None
    adapter_tags = []
    if subject.method:  # as PEFT tags its adapters
        adapter_tags = [subject.method, "transformers", *([f"base_model:adapter:{base_model}"] if base_model else [])]
    return ModelCardData(
        # Of an adapter, that of PEFT, as PEFT's own cards have it.
        library_name="peft" if subject.method else "transformers",
        license=one_line(license) if license else None,
        language=language,
        # Pipelines cannot load an incomplete adapter.
        pipeline_tag=None if subject.left_out else task.task,
        base_model=base_model,
        base_model_relation=description.relation if base_model else None,
        datasets=[dataset] if dataset else None,
        metrics=[next(iter(task.metrics))] if report else None,
        tags=["hf_any3d", *description.tags, "point-cloud", "3d", *adapter_tags],
        model_name=_title(name),
        eval_results=(_eval_results(report, task) or None) if report else None,
    )


def _eval_results(report: RunReport, task: CardTask) -> list[EvalResult]:
    """Collect scores for the hub, each listed under the dataset or file that was evaluated."""
    data = report.data
    results = []
    for split, metrics in report.metrics.items():
        if split not in ("validation", "test") or not data.get("name"):
            continue
        file = (data.get("files") or {}).get(split)
        title = one_line(file or data["name"])
        kind = data["name"] if data.get("on_hub") and hub_name(data["name"]) else data.get("hub_type") or "custom"
        results += [
            EvalResult(
                task_type=task.task,
                task_name=task.task_name,
                dataset_type=one_line(kind),
                dataset_name=title.replace("\\", "/").rsplit("/", 1)[-1] if file else title,
                dataset_split=split,
                metric_type=metric,
                metric_name=task.metrics[metric],
                metric_value=metrics[metric],
            )
            for metric in task.metrics
            if metric in metrics
        ]
    return results


def _report_sections(report: RunReport, classes: Sequence[str], task: CardTask) -> str:
    results = _results(report.metrics, task) + _by_class(report.class_accuracy.get("test", {}), task)
    seed = report.training.get("seed")
    once = f" One run with seed {inline(seed)}; other seeds give other results." if seed is not None else ""
    listed = f"\n{_class_list(classes)}\n" if classes else ""
    data = {key: value for key, value in report.data.items() if key not in _HIDDEN_DATA}
    for split, file in (report.data.get("files") or {}).items():
        data[f"{split} file"] = str(file).replace("\\", "/").rsplit("/", 1)[-1]
    return (
        f"\n## Results\n\n{results}\n\n{_selection(report)}{once}\n"
        f"\n## Data\n\n{_facts(data)}\n{listed}"
        f"\n## Training\n\n{_facts(_training_facts(report))}\n"
    )


def _class_list(classes: Sequence[str]) -> str:
    more = len(classes) - _MAX_CLASSES
    shown = ", ".join(inline(name) for name in classes[:_MAX_CLASSES])
    return f"Classes: {shown}{f' and {more} more' if more > 0 else ''}."


def _results(metrics: Mapping[str, Mapping[str, float]], task: CardTask) -> str:
    judged = {split: values for split, values in metrics.items() if split != "train"}
    if not judged:
        return "The run evaluated no split."
    columns = dict(task.metrics)
    # Metrics that a stock trainer was given by its user.
    others = {key: None for values in judged.values() for key in values if key not in columns and key != "loss"}
    if any(not set(values) & set(columns) for values in judged.values()):
        columns = {key: title for key, title in columns.items() if any(key in values for values in judged.values())}
    head = ["split", *columns.values(), *map(inline, others), "loss"]
    rows = [
        [
            inline(split),
            *(task.format_metric(key, values[key]) if key in values else "" for key in columns),
            *(f"{values[key]:.4g}" if key in values else "" for key in others),
            f"{values['loss']:.3f}" if "loss" in values else "",
        ]
        for split, values in judged.items()
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _by_class(scores: Mapping[str, float], task: CardTask) -> str:
    if not scores:
        return ""
    shares = ", ".join(f"{inline(name)} {task.format_class_score(score)}" for name, score in scores.items())
    return f"\n\nTest split, {task.class_score}: {shares}."


def _selection(report: RunReport) -> str:
    selection = report.selection
    if not selection:
        return "The weights are those of the last step."
    which = f"The weights are those of step {selection['step']}, which gave the best {inline(selection['metric'])} "
    if report.data.get("validation") == TEST_CHOOSES:
        return which + (
            f"({selection['value']:.4g}) on the test split itself: these results are better than those on unseen "
            "clouds would be."
        )
    return which + f"({selection['value']:.4g}) on the validation split; the test split was not used to select them."


def _training_facts(report: RunReport) -> dict[str, Any]:
    share = report.trained_parameters / max(1, report.total_parameters)
    return {
        **{f"encoder {key}": value for key, value in report.encoder.items()},
        **{f"start, {key}": value for key, value in report.start.items()},
        "adapter": report.adapter.get("method", "none"),
        "adapter settings": report.adapter.get("settings"),
        "trained parameters": f"{report.trained_parameters:,} of {report.total_parameters:,} ({100 * share:.2f} %)",
        **report.training,
        **{f"seconds, {part}": f"{seconds:,.0f}" for part, seconds in report.seconds.items()},
        **{f"peak memory, {where}": f"{size / 1e6:,.0f} MB" for where, size in report.peak_memory.items()},
    }


def _facts(facts: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in facts.items() if value not in (None, "", [], {})}
    rows = [f"| {inline(key.replace('_', ' '))} | {inline(_plain(value), 1000)} |" for key, value in shown.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _limits(config: PreTrainedConfig) -> str:
    dependent = getattr(config, "batch_dependent_flags", ())
    if not dependent:
        return ""
    flags = ", ".join(code(flag) for flag in dependent)
    return (
        f"\n**Predictions depend on the other clouds of a batch**: {flags} reproduce a released program. Evaluate "
        "with batches of one cloud or with a shuffled test set, and report which: in a test set sorted by class, "
        "other clouds of the same class make a prediction easier.\n"
    )
