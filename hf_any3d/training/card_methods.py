"""What a model card says differently for each method."""

from __future__ import annotations

import os
from dataclasses import dataclass

from transformers import PreTrainedConfig

from hf_any3d.training.report import RunReport

_NAMED = """\
With the frozen encoder it has {total:,} parameters; {trained:,} of them were trained and lie in this repository. The \
encoder is loaded from its own, and its weights are checked against a checksum."""
_STORED = """\
It has {total:,} parameters, of which {trained:,} were trained; all of them lie in this repository."""
_ADAPTED = """\
With the frozen point transformer it has {total:,} parameters; {trained:,} of them were trained. The frozen ones are \
loaded from where the config says, and are checked against a checksum."""
_TRAINED_BESIDE = """\
With its public parts it has {total:,} parameters; the last stage of training trained {trained:,} of them. This \
repository holds what was trained. The parts {parts} are loaded from their own repositories and checked against \
checksums."""
_ANY2POINT = "Method: [Any2Point](https://arxiv.org/abs/2404.07989)."
_MINIGPT3D = "Method: [MiniGPT-3D](https://arxiv.org/abs/2405.01413), after stage {stage} of 4 of its training."
_ACT = "Method: [ACT](https://arxiv.org/abs/2212.08320)"


@dataclass(frozen=True)
class MethodWords:
    """The method's own pieces of a card.

    Args:
        what: What reads the points, and where the method is described.
        parameters: How many there are, and where they lie.
        tags: Of the repository.
        base_model: Name of what it was made from, as the hub links it; None for nothing that lies there.
        relation: "adapter" or "finetune", how it was made from that.
        models: How the names of the method's models begin.
        builds_base: Makes the base of an adapter; for the repository `{name}`, whose `config` is at hand.
    """

    what: str
    parameters: str
    tags: tuple[str, ...]
    base_model: str | None = None
    relation: str | None = None
    models: str = "Any2Point"
    builds_base: str = "from_encoder_pretrained(config=config)"


def method_words(report: RunReport, config: PreTrainedConfig) -> MethodWords:
    """The words for a trained model."""
    tell = _TELLERS.get(config.model_type, _any2point)
    return tell(report, config)


def _any2point(report: RunReport, config: PreTrainedConfig) -> MethodWords:
    encoder, method = report.encoder["name"], report.adapter.get("method")
    by = f", adapted by the PEFT method `{method}`." if method else None
    if config.encoder_trained_from:
        what = f"An encoder that started as `{encoder}` and was trained as a whole reads the points{by or '.'}"
    else:
        what = f"A frozen `{encoder}` reads the points through a trained tokenizer{by or ', without adapters.'}"
    whole = bool(config.encoder_trained_from)
    return MethodWords(
        what=f"{what} {_ANY2POINT}",
        parameters=_counted(_STORED if whole else _NAMED, report),
        tags=("any2point",),
        base_model=_on_hub(encoder),
        relation="finetune" if whole else "adapter",
    )


def _act_autoencoder(report: RunReport, config: PreTrainedConfig) -> MethodWords:
    teacher = report.encoder.get("name")
    what = "Patches of points become discrete codes, and a decoder folds patches from the codes' vectors"
    if config.encoder_config is not None:
        kind = f"`{teacher}`" if teacher else f"{config.encoder_config.model_type} with random weights"
        what = f"Patches of points become discrete codes, a frozen {kind} reads the codes' vectors beside learned "
        what += "prompts, and a decoder folds patches from what it says"
    return MethodWords(
        what=f"{what}. {_ACT}, first stage.",
        parameters=_counted(_NAMED if config.encoder_name_or_path else _STORED, report),
        tags=("act",),
        base_model=_on_hub(teacher),
        relation="adapter",
    )


def _act_student(report: RunReport, config: PreTrainedConfig) -> MethodWords:
    start, teacher = report.start.get("model"), report.encoder.get("name")
    method = report.adapter.get("method")
    what = f"A point transformer of {config.num_hidden_layers} blocks reads patches of points"
    what += f", started from `{start}`" if start else ", started from random weights"
    what += f", adapted by the PEFT method `{method}`." if method else "."
    if teacher:
        what += f" What it learned to predict comes from an autoencoder around `{teacher}`."
    return MethodWords(
        what=f"{what} {_ACT}.",
        parameters=_counted(_ADAPTED if method else _NAMED if teacher else _STORED, report),
        tags=("act",),
        base_model=_on_hub(start),
        relation="adapter" if method else "finetune",
        models="Act",
        builds_base='build_around_pretrained("{name}", config, {{}})',
    )


def _minigpt3d(report: RunReport, config: PreTrainedConfig) -> MethodWords:
    parts = config.parts or {}
    eyes, words = (
        _told_part(parts.get(part), kind)
        for part, kind in (
            ("point_encoder", config.point_config.model_type),
            ("language_model", config.text_config.model_type),
        )
    )
    listed = ", ".join(f"`{recorded['name']}`" for recorded in parts.values())
    what = f"{eyes} reads the points, a Q-Former with {config.num_query_tokens} queries picks out what matters, and "
    return MethodWords(
        what=f"{what}{words} answers. {_MINIGPT3D.format(stage=config.stage)}",
        parameters=_counted(_TRAINED_BESIDE.replace("{parts}", listed) if parts else _STORED, report),
        tags=("minigpt3d",),
        base_model=_on_hub(parts.get("language_model", {}).get("name_or_path")),
        relation="adapter",
    )


def _told_part(recorded: dict[str, str] | None, kind: str) -> str:
    return f"`{recorded['name']}`" if recorded else f"a model of the kind {kind}"


def _counted(text: str, report: RunReport) -> str:
    return text.format(total=report.total_parameters, trained=report.trained_parameters)


def _on_hub(name: str | None) -> str | None:
    # A directory on the author's disk means nothing to a reader of the hub.
    return None if name is None or os.path.isdir(name) else name


_TELLERS = {"act3d": _act_student, "act3d_autoencoder": _act_autoencoder, "minigpt3d": _minigpt3d}
