"""Parts of model cards that come from the model classes, and a pointer to this package in saved configs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hf_any3d.modeling.config_checks import (
    check_settings_files,
    check_stored_fields,
    read_settings,
    stored_settings,
)
from hf_any3d.modeling.hub_names import check_repository_name, hub_choice

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class CardTask:
    """Text of a model card that depends on the task.

    Args:
        task: Name of the pipeline and of the hub's `pipeline_tag`.
        task_name: Readable name.
        intro: What the model does; `{count}` is the number of classes.
        use: Example with the pipeline; `{category}` is a quoted string.
        logits: Example with `model` and `processor`; `{count}` is the number of classes.
        verb: Variable name of the pipeline in the example.
        metrics: Metrics in the order of the table, by their keys in the report; the first is the main one.
        portions: How clouds are read; `{points}` such as "1024 points".
        class_score: Description of the score of each class.
        limits: Known limits.
        has_classes: Whether the model predicts classes.
        factors: Factors of metrics that are not shares.
        class_factor: Factor of the score of each class; None for a share.
        processor: Class of the processor.
    """

    task: str
    task_name: str
    intro: str
    use: str
    logits: str
    verb: str
    metrics: dict[str, str]
    portions: str = "clouds are sampled to {points} in the unit sphere."
    class_score: str = "accuracy by class"
    limits: str = ""
    has_classes: bool = True
    factors: Mapping[str, float] = field(default_factory=dict)
    class_factor: float | None = None
    processor: str = "PointCloudProcessor"

    @property
    def auto_class(self) -> str:
        """Name of the task's auto class."""
        return "AutoModelFor" + self.task.title().replace("-", "")

    def format_metric(self, metric: str, value: float) -> str:
        """Format a metric."""
        return f"{self.factors[metric] * value:.2f}" if metric in self.factors else f"{100 * value:.1f} %"

    def format_class_score(self, value: float) -> str:
        """Format the score of a class."""
        return f"{100 * value:.0f} %" if self.class_factor is None else f"{self.class_factor * value:.1f}"


@dataclass(frozen=True)
class CardInfo:
    """Model card metadata of a model class.

    Args:
        task: Task of the class; a key of `hf_any3d.model_card.tasks.TASKS` unless `text` is given.
        opens: Class or auto class that loads a saved model in the card's example; None for the auto class of the task.
        text: Text of the card, for a task that is not in `TASKS`.
    """

    task: str
    opens: str | None = None
    text: CardTask | None = None


_card_writers: list[Callable[[Any, str | os.PathLike, str | None], None]] = []


def set_card_writer(writer: Callable[[Any, str | os.PathLike, str | None], None]) -> None:
    """Set the function that writes model cards: `(model, directory, repository or None)`.

    Cards belong to the library around the models, which registers its function here.
    """
    _card_writers[:] = [writer]


@dataclass(frozen=True)
class CardDescription:
    """Sentences and metadata that a model class contributes to the card of a model. All text is Markdown.

    Args:
        what: What processes the points, and where the method is described.
        stored: Which parameters are in the repository, and where the others are loaded from.
        tags: Tags of the repository.
        base_model: Repository that the model was made from; paths are dropped.
        relation: How it was made from that: "adapter" or "finetune".
        base_program: Call that builds the base of an adapter from `config`; `{name}` is the repository, quoted.
    """

    what: str
    stored: str
    tags: tuple[str, ...]
    base_model: str | None = None
    relation: str | None = None
    base_program: str = "from_encoder_pretrained(config=config)"


BUILD_FROM_ADAPTER = "build_for_adapter({name}, config, {{}})"
"""`base_program` of models whose adapter repository also holds the rest of the model."""
STORED_HERE = "all of them are stored in this repository."


class CardSubject(Protocol):
    """The model whose card is written, as `CardMixin.describe_for_card` gets it: `hf_any3d.model_card.Subject`.

    `encoder` is the frozen encoder or teacher, `start` the model that training started from, `method` the PEFT method
    of the adapter; each None where there is none. `is_trained` is True where the training is known.
    """

    config: Any
    encoder: str | None
    start: str | None
    method: str | None
    is_trained: bool

    def show_name(self, name: str) -> str:
        """Format a repository, or the last part of a path, as inline code."""

    def locate_encoder(self, name: str | None) -> str:
        """Return a sentence on where an encoder's weights are, starting with "encoder is"."""


class CardMixin:
    """Write a model card whenever the model is saved or pushed.

    Subclasses set `card_info` and implement `describe_for_card`.
    """

    card_info: ClassVar[CardInfo]

    def write_card(
        self, directory: str | os.PathLike, repository: str | None = None, wrapper: PeftModel | None = None
    ) -> None:
        """Write the model card, with the function given to `set_card_writer`; without one, do nothing.

        Args:
            directory: Where `README.md` is written.
            repository: Name of the hub repository, if the directory is about to be pushed.
            wrapper: The PeftModel around this model, if an adapter is saved.
        """
        if _card_writers:
            _card_writers[-1](self if wrapper is None else wrapper, directory, repository)

    @classmethod
    def describe_for_card(cls, subject: CardSubject) -> CardDescription:
        """Describe a model of this class for its card.

        Raises:
            ValueError: If the class does not implement it.
        """
        raise ValueError(f"{cls.__name__} does not implement describe_for_card, which its model card needs")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with a model card (`README.md`) next to the weights."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self.write_card(save_directory)

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just put the repository's card here, or its empty template where there is none.
        self.write_card(working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


PACKAGE = "hf_any3d: pip install hf-any3d, then import hf_any3d before you open it."
"""Installation hint that programs without this package show in their error message."""


class NamesPackageMixin:
    """For configs and processors: make the error in a program without this package name the package to install.

    For an unknown class, an auto class reports the repository that `auto_map` names as the source of its code. Our
    repositories contain no code; `auto_map` holds an installation hint instead. The hint is not a valid repository
    name, so no one can publish code under it. With the package installed, registered classes take precedence.
    """

    # Names of the auto classes that load it.
    _opened_by: ClassVar[tuple[str, ...]] = ("AutoConfig",)

    def to_json_file(self, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the JSON file of `save_pretrained`, with the installation hint."""
        self.auto_map = dict.fromkeys(self._opened_by, f"{PACKAGE}--hf_any3d.{type(self).__name__}")
        try:
            super().to_json_file(json_file_path, *args, **kwargs)
        finally:
            del self.auto_map

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does.

        Raises:
            FileNotFoundError: If the name looks like a path, and nothing is there.
            OSError: If the hub may not be used, and the repository is not in its cache.
            ValueError: If stored settings are damaged or impossible; names the directory, and the file and field.
        """
        name = pretrained_model_name_or_path
        check_repository_name(name, **hub_choice(kwargs))
        check_settings_files(Path(name, kwargs.get("subfolder") or ""))
        with stored_settings(name):
            return super().from_pretrained(name, *args, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        """Build from a file that `to_json_file` wrote; equal to what was written.

        Raises:
            ValueError: If it is damaged, or a setting is impossible; names the file.
        """
        with stored_settings(json_file):
            return cls.from_dict(read_settings(json_file))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the contents of such a file, without the installation hint.

        Raises:
            ValueError: If a setting is impossible.
        """
        settings = {name: value for name, value in config_dict.items() if name != "auto_map"}
        with stored_settings(kwargs.get("name_or_path")):  # that of an auto class
            check_stored_fields(settings)
            return super().from_dict(settings, **kwargs)
