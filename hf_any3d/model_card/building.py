"""Build a model card from the class and config of a model, its adapter, and the report of a run, if any."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_any3d.hub.published_table import non_commercial_record
from hf_any3d.model_card.descriptions import Description, describe
from hf_any3d.model_card.run_report import TEST_CHOOSES, RunReport, package_versions
from hf_any3d.model_card.subject import Subject, hub_name
from hf_any3d.model_card.tasks import CardTask
from hf_any3d.utils.markdown import code, inline, literal, one_line
from hf_any3d.utils.messages import listed, percent

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = Path(__file__).with_name("template.md")
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
        license: License of the model; by default that of published weights in it which forbid commercial use, if any.
        language: Language of the model's answers.
        intro: Markdown that replaces the task's first sentence.
        remark: Markdown to add to the first paragraph.
        sections: Further sections, title to Markdown.
        base_model: What the model was made from; taken from the model by default.
    """
    task = subject.task
    config = subject.config
    report = subject.report
    description = describe(subject)
    sections = dict(sections or {})
    # Models that are trained from such weights keep their terms.
    record = non_commercial_record(config)
    if record:
        license = license or record["weights_license"].lower()
        origin = code(record["name"]) if record.get("name") else "published ones"
        terms = inline(record["weights_license"])
        terms = f"This model was made from weights, {origin}, under {terms}, which forbids its commercial use too."
        sections = {"License": terms, **sections}
    count = len(subject.classes)
    quoted = literal(name)
    points = f"{subject.num_points} points" if subject.num_points else "the processor's number of points"
    # Without names of categories the example takes a number.
    categories = getattr(config, "category_names", None) or ["0"]
    # Auto classes have the names of their tasks.
    auto_class = task.opens or f"AutoModelFor{task.task.title().replace('-', '')}"
    # Those of the run, which may have been made elsewhere, or else those here.
    versions = report.versions if report else package_versions()
    metadata = _metadata(subject, name, description, license, language, base_model)
    flags: list[str] = list(getattr(subject.config, "batch_dependent_flags", ()))
    if (subject.adapter.get("settings") or {}).get("scale_over") == "batch":
        flags.append("scale_over='batch'")
    classes = [inline(name) for name in subject.classes]
    text = _template().render(
        card_data=metadata.to_yaml(),
        title=inline(_title(name)),
        name=quoted,
        task=task,
        intro=intro or task.intro.format(count=count),
        what=description.what,
        parameters=_parameters(subject, description.stored),
        remark=remark,
        is_complete=subject.is_complete,
        left_out=", ".join(map(code, subject.left_out)),
        batch_flags=", ".join(map(code, flags)),
        # The example reads a chair.
        use=task.use.format(category=literal("Chair" if "Chair" in categories else categories[0])),
        # Without the places in the room, which the processor adds.
        channels=getattr(config, "position_channel", 0) or getattr(config, "point_config", config).in_channels,
        portions=task.portions.format(points=points),
        auto_class=auto_class.format(model_class=subject.named_task[0], base=subject.model_type.base),
        processor=subject.model_type.processor.rpartition(".")[2],
        logits=task.logits.format(count=count),
        model_class=subject.model_class.__name__,
        base_program=description.base_program.format(name=quoted) if subject.method else "",
        classes=f"Classes: {listed(classes, _MAX_CLASSES)}." if classes else "",
        limits=task.limits.strip(),
        sections=[(inline(title), body.strip()) for title, body in sections.items()],
        versions=", ".join(f"{inline(package)} {inline(version)}" for package, version in versions.items()),
        **(_results_of_run(report, task) if report else {}),
    )
    return ModelCard(text)


@functools.cache
def _template() -> Template:
    """Return the template of cards, which takes longer to compile than to fill in."""
    from jinja2 import Template  # here, since most programs write no cards

    return Template(_TEMPLATE.read_text(encoding="utf-8"))


def _title(name: str) -> str:
    return one_line(name.rstrip("/").rsplit("/", 1)[-1] or "model")


def _parameters(subject: Subject, stored: str) -> str:
    report = subject.report
    total = report.total_parameters if report else subject.total_parameters
    if total is None:
        return f"{stored[0].upper()}{stored[1:]}"
    counted = f"It has {total:,} parameters"
    counted += f", of which {report.trained_parameters:,} were trained" if report else ""
    # A stated place in lower case continues the sentence; one in upper case begins its own.
    return f"{counted}; {stored}" if stored[0].islower() else f"{counted}. {stored}"


def _metadata(
    subject: Subject,
    name: str,
    description: Description,
    license: str | None,
    language: str | None,
    base_model: str | None,
) -> ModelCardData:
    """Return the metadata at the head of the card, by which the hub lists it."""
    task = subject.task
    report = subject.report
    data = report.data if report else {}
    dataset = hub_name(data.get("name")) if data.get("on_hub") else None
    # A path of this machine says nothing to readers of the hub, and its metadata would be refused.
    base_model = hub_name(base_model) or hub_name(description.base_model)
    tags = list(description.tags)
    if description.is_control:
        tags.append("control")
    tags += ["point-cloud", "3d"]
    if subject.method:  # as PEFT tags its adapters
        tags += ["peft", subject.method, "transformers"]
        tags += [f"base_model:adapter:{base_model}"] if base_model else []
    return ModelCardData(
        # Neither transformers nor PEFT alone opens it.
        library_name="hf_any3d",
        license=one_line(license) if license else None,
        language=language,
        # Pipelines cannot load an incomplete adapter.
        pipeline_tag=task.task if subject.is_complete else None,
        base_model=base_model,
        base_model_relation=description.relation if base_model else None,
        datasets=[dataset] if dataset else None,
        # The first metric of a task is its main one.
        metrics=[next(iter(task.metrics))] if report else None,
        tags=["hf_any3d", *tags],
        model_name=_title(name),
        eval_results=_scores(report, task, dataset) or None,
    )


def _scores(report: RunReport | None, task: CardTask, dataset: str | None) -> list[EvalResult]:
    """Return scores for the hub, each listed under the dataset or file that was evaluated."""
    # The hub lists a score under the data that it is about.
    if report is None or not report.data.get("name"):
        return []
    dataset_type = one_line(dataset or report.data.get("hub_type") or "custom")
    files = report.data.get("files") or {}
    scores = []
    for split, metrics in report.metrics.items():
        # Scores on the training split would pass for results.
        if split not in ("validation", "test"):
            continue
        # The name of the file alone: its folder is one of this machine.
        dataset_name = one_line(_file_name(files[split]) if files.get(split) else report.data["name"])
        for metric, title in task.metrics.items():
            if metric in metrics:
                score = EvalResult(
                    task_type=task.task,
                    task_name=task.task_name,
                    dataset_type=dataset_type,
                    dataset_name=dataset_name,
                    dataset_split=split,
                    metric_type=metric,
                    metric_name=title,
                    metric_value=metrics[metric],
                )
                scores.append(score)
    return scores


def _file_name(path: object) -> str:
    """Return the last part of a path, which may come from a machine with another separator."""
    return re.split(r"[/\\]", str(path))[-1]


def _results_of_run(report: RunReport, task: CardTask) -> dict[str, Any]:
    """Return the values of the template about a run: results, data and training."""
    scores = report.class_accuracy.get("test", {})
    selection = report.selection
    seed = report.training.get("seed")
    trained = report.trained_parameters
    total = report.total_parameters
    # Shares in percent; other scores by the factor of the task.
    factor, form = (100, "{:.0f} %") if task.class_factor is None else (task.class_factor, "{:.1f}")
    data = {key: value for key, value in report.data.items() if key not in _HIDDEN_DATA}
    for split, file in (report.data.get("files") or {}).items():
        data[f"{split} file"] = _file_name(file)
    return {
        "results": _results(report.metrics, task),
        "class_scores": ", ".join(f"{inline(name)} {form.format(factor * score)}" for name, score in scores.items()),
        "selection": {**selection, "metric": inline(selection["metric"])} if selection else None,
        # A head that is fitted to frozen features has no steps, and so no best one.
        "has_steps": "steps" in report.training or not report.training,
        "test_chooses": report.data.get("validation") == TEST_CHOOSES,
        "seed": None if seed is None else inline(seed),
        "data": _facts(data),
        "training": _facts(
            {
                **{f"encoder {key}": value for key, value in report.encoder.items()},
                **{f"start, {key}": value for key, value in report.start.items()},
                "adapter": report.adapter.get("method", "none"),
                "adapter settings": report.adapter.get("settings"),
                "trained parameters": f"{trained:,} of {total:,} ({percent(trained / max(1, total), 2)} %)",
                **report.training,
                **{f"seconds, {part}": f"{seconds:,.0f}" for part, seconds in report.seconds.items()},
                **{f"peak memory, {where}": f"{size / 1e6:,.0f} MB" for where, size in report.peak_memory.items()},
            }
        ),
    }


def _results(metrics: Mapping[str, Mapping[str, float]], task: CardTask) -> str:
    """Return a table of the metrics of each split that was not trained on."""
    judged = {split: values for split, values in metrics.items() if split != "train"}
    if not judged:
        return "This run was not evaluated."
    # The task's metrics first, all of them unless a split has none, then those that a stock trainer was given.
    occurring = {key: None for values in judged.values() for key in values}
    titles = dict(task.metrics)
    if any(titles.keys().isdisjoint(values) for values in judged.values()):
        titles = {key: title for key, title in titles.items() if key in occurring}
    # The loss has a column of its own, the last one.
    others = [key for key in occurring if key not in task.metrics and key != "loss"]
    titles = titles | {key: inline(key) for key in others}
    rows = [["split", *titles.values(), "loss"]]
    for split, values in judged.items():
        cells = [inline(split)]
        for key in titles:
            cells.append(_cell(key, values[key], task) if key in values else "")
        cells.append(f"{values['loss']:.3f}" if "loss" in values else "")
        rows.append(cells)
    return _table(rows)


def _cell(key: str, value: float, task: CardTask) -> str:
    """Format a metric: of the task in percent or by its own factor, others as they are."""
    if key not in task.metrics:
        return f"{value:.4g}"
    return f"{task.factors[key] * value:.2f}" if key in task.factors else f"{percent(value, 1)} %"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of Markdown, the head first."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def _facts(facts: Mapping[str, Any]) -> str:
    # 0 and False are facts, too.
    shown = {key: value for key, value in facts.items() if value not in (None, "", [], {})}
    return _table(
        [["", ""], *([inline(key.replace("_", " ")), inline(_plain(value), 1000)] for key, value in shown.items())]
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
