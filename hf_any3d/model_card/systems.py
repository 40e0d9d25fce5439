"""What a model card says for each system: what reads the points, where the method is described, what it was made from.

A new system is an entry of `SYSTEMS`; a model whose system has none is refused rather than described as another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_any3d.markdown import code, inline

if TYPE_CHECKING:
    from hf_any3d.model_card.building import Subject


# The base of an adapter from what lies beside it, or from where the config says.
_BESIDE = "build_for_adapter({name}, config, {{}})"


@dataclass(frozen=True)
class SystemWords:
    """A system's pieces of a card.

    Args:
        what: What reads the points, and where the method is described.
        stored: Which of the parameters lie in the repository, and where the others come from.
        tags: Of the repository.
        base_model: What it was made from, as the hub links it; None for nothing that lies there.
        relation: "adapter" or "finetune", how it was made from that.
        base_program: Makes the base of an adapter from `config`; `{name}` is the repository as a string of Python.
    """

    what: str
    stored: str
    tags: tuple[str, ...]
    base_model: str | None = None
    relation: str | None = None
    base_program: str = "from_encoder_pretrained(config=config)"


def describe_system(subject: Subject) -> SystemWords:
    """The words for a model.

    Raises:
        ValueError: If nobody has said what models of this class are.
    """
    system = subject.info.system
    if system not in SYSTEMS:
        raise ValueError(
            f"{subject.model_class.__name__}.card_info.system is {system!r}; expected one of {', '.join(SYSTEMS)}, or "
            "a new entry of hf_any3d.model_card.systems.SYSTEMS"
        )
    return SYSTEMS[system](subject)


def hub_name(name: Any) -> str | None:
    """A repository that a reader of the hub can follow; None for a directory of the author's disk."""
    if not name or not isinstance(name, (str, os.PathLike)) or os.path.isabs(name) or os.path.isdir(name):
        return None
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return None
    return str(name)


def shown_name(name: Any) -> str:
    """A repository, or the last part of a path, as inline code."""
    return code(name if hub_name(name) else Path(name).name)


def encoder_source(name: str | None) -> str:
    """Where a frozen encoder's weights are, as a sentence without its subject's first word."""
    if name is None:
        return "encoder is stored in this repository."
    if hub_name(name):
        return f"encoder is loaded from {code(name)}, and its weights are checked against a checksum."
    return (
        "encoder is loaded from a directory of the machine that this was made on; before sharing, store it with the "
        "model, or name a repository on the hub."
    )


def _any2point(subject: Subject) -> SystemWords:
    config, adapter = subject.config, subject.adapter.get("method")
    encoder = subject.encoder
    started = getattr(config, "encoder_trained_from", None)
    kind = getattr(getattr(config, "encoder_config", None), "model_type", "transformer")
    shown = shown_name(encoder) if encoder else f"{inline(kind)} encoder"
    by = f", adapted by the PEFT method {code(adapter)}." if adapter else None
    if started:
        what = f"An encoder that started as {shown_name(started)} and was changed in training reads the points"
        what += by or "."
        stored = "all of them lie in this repository."
    else:
        what = f"A frozen {shown} reads the points through a trained tokenizer{by or ', without adapters.'}"
        stored = f"The {encoder_source(getattr(config, 'encoder_name_or_path', None))}"
    return SystemWords(
        what=f"{what} Method: [Any2Point](https://arxiv.org/abs/2404.07989).",
        stored=stored,
        tags=("any2point",),
        base_model=hub_name(started or encoder),
        relation="finetune" if started else "adapter",
        base_program="from_encoder_pretrained(config=config)" if config.encoder_name_or_path else _BESIDE,
    )


def _act(subject: Subject) -> SystemWords:
    config, adapter = subject.config, subject.adapter.get("method")
    start, teacher = subject.start, subject.encoder
    what = f"A point transformer of {config.num_hidden_layers} blocks reads patches of points"
    if start:
        what += f", started from {shown_name(start)}"
    elif subject.report is not None:
        what += ", started from random weights"
    what += f", adapted by the PEFT method {code(adapter)}." if adapter else "."
    if teacher:
        what += f" What it learned to predict comes from an autoencoder around {shown_name(teacher)}."
    return SystemWords(
        what=f"{what} Method: [ACT](https://arxiv.org/abs/2212.08320).",
        stored="The frozen ones are loaded from where the config says, and are checked against a checksum."
        if adapter
        else f"The teacher's {encoder_source(teacher)}"
        if teacher
        else "all of them lie in this repository.",
        tags=("act",),
        base_model=hub_name(start),
        relation="adapter" if adapter else "finetune",
        base_program=_BESIDE,
    )


def _act_autoencoder(subject: Subject) -> SystemWords:
    config, teacher = subject.config, subject.encoder
    what = "Patches of points become discrete codes, and a decoder folds patches from the codes' vectors"
    if config.encoder_config is not None:
        kind = shown_name(teacher) if teacher else inline(config.encoder_config.model_type) + " encoder"
        if subject.report is not None and not teacher:
            kind += " with random weights"
        what = f"Patches of points become discrete codes, a frozen {kind} reads the codes' vectors beside learned "
        what += "prompts, and a decoder folds patches from what it gives"
    return SystemWords(
        what=f"{what}. Method: [ACT](https://arxiv.org/abs/2212.08320), first stage.",
        stored="all of them lie in this repository."
        if config.encoder_config is None or not config.encoder_name_or_path
        else f"The {encoder_source(config.encoder_name_or_path)}",
        tags=("act",),
        base_model=hub_name(teacher),
        relation="adapter",
    )


def _minigpt3d(subject: Subject) -> SystemWords:
    config = subject.config
    recorded = {part: config.part(part) for part in config.parts or {}}
    parts = {name: part.name_or_path for name, part in recorded.items() if part.is_elsewhere}
    kinds = {"point_encoder": config.point_config.model_type, "language_model": config.text_config.model_type}
    eyes, words = (
        shown_name(parts[part]) if parts.get(part) else f"a model of the kind {inline(kind)}"
        for part, kind in kinds.items()
    )
    stored = "all of them lie in this repository."
    if parts:
        listed = ", ".join(shown_name(name) for name in parts.values())
        stored = f"The parts {listed} are loaded from where they lie and checked against checksums."
    return SystemWords(
        what=f"{eyes[0].upper()}{eyes[1:]} reads the points, a Q-Former with {config.num_query_tokens} queries picks "
        f"out what matters, and {words} answers. Method: [MiniGPT-3D](https://arxiv.org/abs/2405.01413), after stage "
        f"{config.stage} of 4 of its training.",
        stored=stored,
        tags=("minigpt3d",),
        base_model=hub_name(parts.get("language_model")),
        relation="adapter",
    )


SYSTEMS: dict[str, Callable[[Subject], SystemWords]] = {
    "any2point": _any2point,
    "act": _act,
    "act_autoencoder": _act_autoencoder,
    "minigpt3d": _minigpt3d,
}
