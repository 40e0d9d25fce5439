"""Facts that model classes give for their model cards, and a pointer to this package in saved configs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
class CardInfo:
    """Task of a model class, for its model card.

    Args:
        task: Task of the class.
        opens: Class or auto class that loads a saved model in the card's example; None for the auto class of the task.
        text: Key of `hf_any3d.model_card.TASKS` with the task's text, if it is not `task`.
    """

    task: str
    opens: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class MethodInfo:
    """Published method that a family of model classes implements, for their model cards.

    Args:
        name: Name of the method.
        paper: Number of its paper on arXiv; None without one.
        tags: Tags of repositories.
        reads: How the model reads a cloud; `{config.num_hidden_layers}` is a setting. Empty if it depends on more.
    """

    name: str
    paper: str | None
    tags: tuple[str, ...]
    reads: str = ""


READS_PATCHES = "A point transformer of {config.num_hidden_layers} blocks reads patches of points"
"""How ACT's student and the aligned encoders read a cloud."""

_card_writers: list[Callable[[Any, str | os.PathLike, str | None], None]] = []


def set_card_writer(writer: Callable[[Any, str | os.PathLike, str | None], None]) -> None:
    """Set the function that writes model cards: `(model, directory, repository or None)`.

    Cards belong to the library around the models, which registers its function here.
    """
    _card_writers[:] = [writer]


class CardMixin:
    """Write a model card whenever the model is saved or pushed.

    Subclasses set `card_info`, and their common base class `method_info`.
    """

    card_info: ClassVar[CardInfo]
    method_info: ClassVar[MethodInfo]

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
