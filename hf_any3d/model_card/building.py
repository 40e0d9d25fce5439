"""A model card from what is known: the class and config of a model, its adapter, and the report of a run, if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedConfig

from hf_any3d.markdown import code, inline, literal, one_line
from hf_any3d.model_card.run_report import TEST_CHOOSES, RunReport, package_versions
from hf_any3d.model_card.systems import SystemWords, describe_system, hub_name
from hf_any3d.model_card.tasks import TASKS, CardTask
from hf_any3d.modeling.card_info import CardInfo
from hf_any3d.modeling.pretrained_parts import AdapterLoadingMixin
from hf_any3d.tuners.loading import left_out_modules

_CARD = """\
# {title}

{intro} {what} {parameters}{remark}

## How to use it

```bash
pip install hf-any3d
```

```python
import hf_any3d  # lets transformers and PEFT know these models
from transformers import pipeline

{verb} = pipeline("{task}", model={name}{options})
{use}
```

A path, a mesh, an array `(points, {channels})`, a list or a dataset column of them go in; {portions}
{as_model}:

```python
import hf_any3d
from hf_any3d import {auto_class}, {processor}

model = {auto_class}.from_pretrained({name})
processor = {processor}.from_pretrained({name})
{logits}
```
"""
_PEFT_DOOR = """
As an adapter, to be switched, disabled or put beside others:

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
_PART_OF_A_MODEL = """\
This adapter does not make a model by itself: {left_out} were left out when it was saved. It works on the very model
that it was trained on, and on no other:

```python
import hf_any3d  # lets transformers and PEFT know these models
from peft import PeftModel

model = PeftModel.from_pretrained(base, {name}).eval()  # base: the model that the adapter was trained on
```
"""
# Names of classes that a card lists; the config has all of them.
_MOST_CLASSES = 400
# Facts about the data that are for the metadata or for metrics.json.
_NOT_SHOWN = ("on_hub", "files", "hub_type")

# Settings of an adapter that say nothing about what it does.
_NO_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
}


@dataclass(frozen=True)
class Subject:
    """A model whose card is to be written.

    Args:
        model_class: Its class, which describes itself in `card_info`.
        config: Its config.
        adapter: `method` and `settings` of its PEFT adapter; empty without one.
        total_parameters: All of them, a frozen encoder's among them; None where nobody counted.
        report: What its training was, cost and gave; None where that is not known.
        num_points: Points of a cloud that the processor gives; None where that is not known.
        left_out: Modules that an adapter was trained beside and that are not saved with it.
    """

    model_class: type
    config: PreTrainedConfig
    adapter: Mapping[str, Any] = field(default_factory=dict)
    total_parameters: int | None = None
    report: RunReport | None = None
    num_points: int | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def from_model(cls, model: nn.Module, report: RunReport | None = None, num_points: int | None = None) -> Subject:
        """A model at hand, adapted or not.

        Raises:
            ValueError: If the class of the model does not describe itself.
        """
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        left_out: tuple[str, ...] = ()
        if isinstance(model, PeftModel) and isinstance(inner, AdapterLoadingMixin):
            left_out = tuple(left_out_modules(model, model.active_adapter))
        return cls(
            type(inner),
            inner.config,
            report.adapter if report else adapter_facts(model),
            sum(parameter.numel() for parameter in inner.parameters()),
            report,
            num_points,
            left_out,
        )

    @property
    def info(self) -> CardInfo:
        """How the class describes itself.

        Raises:
            ValueError: If it does not.
        """
        info = getattr(self.model_class, "card_info", None)
        if not isinstance(info, CardInfo) or info.task not in TASKS:
            raise ValueError(
                f"{self.model_class.__name__} does not say what its model card should say: card_info is {info!r}; "
                f"expected a CardInfo with a task of {', '.join(TASKS)}"
            )
        return info

    @property
    def task(self) -> CardTask:
        """What the model is used for."""
        return TASKS[self.info.task]

    @property
    def encoder(self) -> str | None:
        """Name of the frozen encoder or teacher."""
        if self.report is not None:
            return self.report.encoder.get("name")
        return getattr(self.config, "encoder_name_or_path", None)

    @property
    def start(self) -> str | None:
        """Name of the point transformer that training started from."""
        if self.report is not None:
            return self.report.start.get("model")
        return getattr(self.config, "base_name_or_path", None) if self.adapter else None

    @property
    def classes(self) -> list[str]:
        """Names of the classes in their order; empty for a task without."""
        labels = self.config.id2label if self.task.has_classes else {}
        return [labels[number] for number in sorted(labels)]


def adapter_facts(model: nn.Module) -> dict[str, Any]:
    """PEFT method of a model's active adapter and the settings in which it leaves the defaults; empty without one."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping) or not configs:
        return {}
    active = model.active_adapter if isinstance(model, PeftModel) else next(iter(model.active_adapters()), None)
    config = configs.get(active, next(iter(configs.values())))
    return {"method": config.peft_type.value.lower(), "settings": _changed(config)}


def _changed(config: PeftConfig) -> dict[str, Any]:
    changed = {}
    for one in fields(config):
        value = getattr(config, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.init and one.name not in _NO_SETTINGS and value != default:
            changed[one.name] = sorted(value) if isinstance(value, set) else value
    return {
        key: value if isinstance(value, (bool, int, float, list)) else str(value) for key, value in changed.items()
    }


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
    """Write the card of a model.

    Args:
        subject: The model and what is known of it.
        name: The repository's name, or the directory, that the card's examples load.
        license: Licence of the model, as the hub writes it; left out where nobody says.
        language: Language that the model speaks, as the hub writes it.
        intro: Instead of the task's own first sentence; Markdown.
        remark: More for the first paragraph; Markdown.
        sections: Further sections, title to Markdown.
        base_model: What the model was made from, instead of what the config says.

    Raises:
        ValueError: If the model's class does not describe itself.
    """
    task, words, report = subject.task, describe_system(subject), subject.report
    text = _usage(subject, name, words, intro, remark)
    if subject.left_out:
        text = text.partition("```python")[0] + _PART_OF_A_MODEL.format(
            name=literal(name), left_out=", ".join(map(code, subject.left_out))
        )
    elif subject.adapter.get("method"):
        text += _PEFT_DOOR.format(
            name=literal(name),
            model_class=subject.model_class.__name__,
            base_program=words.base_program.format(name=literal(name)),
        )
    text += _report_sections(report, subject.classes, task) if report else _classes_section(subject.classes)
    text += _limits(subject.config) + task.limits
    text += "".join(f"\n## {inline(title)}\n\n{body.strip()}\n" for title, body in (sections or {}).items())
    versions = report.versions if report else package_versions()
    shown = ", ".join(f"{inline(package)} {inline(version)}" for package, version in versions.items())
    text += f"\nMade with hf_any3d ({shown}).\n"
    metadata = _metadata(subject, name, words, license, language, base_model)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def _usage(subject: Subject, name: str, words: SystemWords, intro: str | None, remark: str) -> str:
    task, config, info = subject.task, subject.config, subject.info
    count = len(subject.classes)
    points = f"{subject.num_points} points" if subject.num_points else "the processor's number of points"
    categories = getattr(config, "category_names", None) or ["0"]
    auto_class = info.opens or task.auto_class
    return _CARD.format(
        title=inline(_title(name)),
        intro=intro or task.intro.format(count=count),
        what=words.what,
        parameters=_parameters(subject, words),
        remark=f" {remark}" if remark else "",
        verb=task.verb,
        task=task.task,
        name=literal(name),
        # Neighbours in a batch would sway the answer.
        options=", batch_size=1" if getattr(config, "batch_dependent_flags", ()) else "",
        use=task.use.format(category=literal("Chair" if "Chair" in categories else categories[0])),
        channels=_channels(config),
        portions=task.portions.format(points=points),
        as_model=task.as_model,
        auto_class=auto_class,
        processor=task.processor,
        logits=task.logits.format(count=count),
    )


def _title(name: str) -> str:
    return one_line(name.rstrip("/").rsplit("/", 1)[-1] or "model")


def _channels(config: PreTrainedConfig) -> int:
    return config.point_config.in_channels if hasattr(config, "point_config") else config.in_channels


def _parameters(subject: Subject, words: SystemWords) -> str:
    total, report = subject.total_parameters, subject.report
    total = report.total_parameters if report else total
    stored = words.stored
    if total is None:
        return f"{stored[0].upper()}{stored[1:]}"
    counted = f"It has {total:,} parameters"
    counted += f", of which {report.trained_parameters:,} were trained" if report else ""
    return f"{counted}; {stored}" if stored[0].islower() else f"{counted}. {stored}"


def _metadata(
    subject: Subject,
    name: str,
    words: SystemWords,
    license: str | None,
    language: str | None,
    base_model: str | None,
) -> ModelCardData:
    task, report = subject.task, subject.report
    base_model = hub_name(base_model) or words.base_model
    data = report.data if report else {}
    dataset = data.get("name")
    method = subject.adapter.get("method")
    return ModelCardData(
        library_name="transformers",
        license=one_line(license) if license else None,
        language=language,
        # A part of a model opens in no pipeline.
        pipeline_tag=None if subject.left_out else task.task,
        base_model=base_model,
        base_model_relation=words.relation if base_model else None,
        datasets=[dataset] if data.get("on_hub") and hub_name(dataset) else None,
        metrics=[next(iter(task.metrics))] if report else None,
        tags=["hf_any3d", *words.tags, "point-cloud", "3d", *([method] if method else [])],
        model_name=_title(name),
        eval_results=(_eval_results(report, task) or None) if report else None,
    )


def _eval_results(report: RunReport, task: CardTask) -> list[EvalResult]:
    """Scores for the hub, each filed under the dataset or the file that the clouds judged came from."""
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
    once = f" One run with seed {inline(seed)}; other seeds give other figures." if seed is not None else ""
    listed = f"\n{_class_list(classes)}\n" if classes else ""
    data = {key: value for key, value in report.data.items() if key not in _NOT_SHOWN}
    for split, file in (report.data.get("files") or {}).items():
        data[f"{split} file"] = str(file).replace("\\", "/").rsplit("/", 1)[-1]
    return (
        f"\n## Results\n\n{results}\n\n{_selection(report)}{once}\n"
        f"\n## Data\n\n{_facts(data)}\n{listed}"
        f"\n## Training\n\n{_facts(_training_facts(report))}\n"
    )


def _classes_section(classes: Sequence[str]) -> str:
    return f"\n## Classes\n\n{_class_list(classes)}\n" if classes else ""


def _class_list(classes: Sequence[str]) -> str:
    more = len(classes) - _MOST_CLASSES
    shown = ", ".join(inline(name) for name in classes[:_MOST_CLASSES])
    return f"Classes: {shown}{f' and {more} more' if more > 0 else ''}."


def _results(metrics: Mapping[str, Mapping[str, float]], task: CardTask) -> str:
    judged = {split: values for split, values in metrics.items() if split != "train"}
    if not judged:
        return "The run judged no split."
    columns = {key: title for key, title in task.metrics.items()}
    # What a trainer of somebody else's counted.
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
            f"({selection['value']:.4g}) on the test split itself: these figures are better than those on unseen "
            "clouds would be."
        )
    return which + f"({selection['value']:.4g}) on the validation split; the test split selected nothing."


def _training_facts(report: RunReport) -> dict[str, Any]:
    encoder = {f"encoder {key}": value for key, value in report.encoder.items()}
    start = {f"start, {key}": value for key, value in report.start.items()}
    settings = report.adapter.get("settings")
    memory = {f"peak memory, {where}": f"{size / 1e6:,.0f} MB" for where, size in report.peak_memory.items()}
    share = report.trained_parameters / max(1, report.total_parameters)
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


def _facts(facts: Mapping[str, Any]) -> str:
    told = {key: value for key, value in facts.items() if value not in (None, "", [], {})}
    rows = [f"| {inline(key.replace('_', ' '))} | {inline(_plain(value), 1000)} |" for key, value in told.items()]
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
        "with batches of one cloud or with a shuffled test set, and say which: in a test set sorted by class, a cloud "
        "is helped by neighbours of its own class.\n"
    )
