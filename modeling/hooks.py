"""The one place where a library around these models takes part: when they are opened by a name, saved and pushed.

This package knows neither the hub nor model cards. `hf_any3d.integration.registration` passes a `Library` that does to
`set_library`; the mixins below ask it, and all models, configs and processors have one of them. It is loaded when it
is first asked, so that nothing depends on what else was imported before.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from hf_any3d.modeling.config_checks import (
    check_settings_files,
    check_stored_fields,
    read_settings,
    stored_settings,
)


class ModelWarning(UserWarning):
    """Says something of a model, whatever its input."""


def _nothing(*_: Any) -> None:
    return None


def _no_weights(name: str, revision: str | None) -> tuple[Path, str | None]:
    raise FileNotFoundError(f"no directory {name}, and revision {revision or 'main'} of it cannot be looked up")


def _no_references(*_: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Library:
    """Functions of a library around these models. Those by default do nothing, so that models work by themselves.

    Args:
        check_name: Raise an error if a name must not, or cannot, be looked up on the hub. Given: the first argument of
            `from_pretrained`, and its keyword arguments.
        find_weights: Return the directory with config and weights of a repository, and its commit if it came from the
            hub. Given: its name, and a branch, tag or commit, or None for the main branch.
        code_references: Return the `auto_map` of a saved config or processor: what auto classes are told in programs
            that lack its class. Given: the class, and the names of the auto classes that load it.
        describe: Describe a model where it has just been saved. Given: the model, or a PeftModel around it if an
            adapter was saved; the directory; the repository that the directory is about to be pushed to, or None.
    """

    check_name: Callable[[Any, Mapping[str, Any]], None] = _nothing
    find_weights: Callable[[str, str | None], tuple[Path, str | None]] = _no_weights
    code_references: Callable[[type, tuple[str, ...]], dict[str, str]] = _no_references
    describe: Callable[[Any, str | os.PathLike, str | None], None] = _nothing


# What sets the library, by its name: this package imports nothing around it.
_REGISTRATION = "hf_any3d.integration.registration"
_library: Library | None = None


def set_library(library: Library) -> None:
    """Set the library that all models, configs and processors ask from now on."""
    global _library
    _library = library


def library() -> Library:
    """Return the library that was set; where PEFT or SciPy is not installed, one that does nothing."""
    # Looked for before: what registers would be imported in vain up to the point where one of them is missing.
    if _library is None and all(map(importlib.util.find_spec, ("peft", "scipy"))):
        importlib.import_module(_REGISTRATION).register()
    return _library or Library()


class LibraryModelMixin:
    """For models, as the first base class: names are checked before anything is opened, saved models are described."""

    # PEFT asks by this name, of which transformers warns from 5.23 on, where the other one is new.
    is_gradient_checkpointing = getattr(
        PreTrainedModel, "is_activation_checkpointing", PreTrainedModel.is_gradient_checkpointing
    )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does, with additional checks.

        Raises:
            FileNotFoundError: If the name looks like a path, and nothing is there.
            OSError: If the hub may not be used, and the repository is not in its cache.
            EncoderMismatchError: If pretrained weights differ from those that the model was trained with.
            ValueError: If weights of the saved model are missing, have other shapes than the config of a directory
                defines, or are not finite; the message names them.
            TypeError: If an argument is unknown.
        """
        library().check_name(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _initialize_weights(self, module: Any, is_custom_code: bool = False) -> None:
        # Of classes outside of transformers, modules without parameters of their own would be passed over, and with
        # them the rules for what they consist of. Ours draw with transformers' functions, which leave loaded tensors.
        del is_custom_code
        super()._initialize_weights(module)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with a model card (`README.md`) next to the weights."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            library().describe(self, save_directory, None)

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just put the repository's card here, or its empty template where there is none.
        library().describe(self, working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


class LibrarySettingsMixin:
    """For configs and processors: names and stored settings are checked, and saved ones refer to the library."""

    # Names of the auto classes that load it.
    _opened_by: ClassVar[tuple[str, ...]] = ("AutoConfig",)

    def to_json_file(self, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the JSON file of `save_pretrained`, with the reference to the library."""
        if references := library().code_references(type(self), self._opened_by):
            self.auto_map = references
        try:
            super().to_json_file(json_file_path, *args, **kwargs)
        finally:
            vars(self).pop("auto_map", None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does.

        Raises:
            FileNotFoundError: If the name looks like a path, and nothing is there.
            OSError: If the hub may not be used, and the repository is not in its cache.
            ValueError: If stored settings are damaged or impossible; names the directory, and the file and field.
        """
        name = pretrained_model_name_or_path
        library().check_name(name, kwargs)
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
        """Build from the contents of such a file, without the reference.

        Raises:
            ValueError: If a setting is impossible.
        """
        settings = {name: value for name, value in config_dict.items() if name != "auto_map"}
        with stored_settings(kwargs.get("name_or_path")):  # that of an auto class
            check_stored_fields(settings)
            return super().from_dict(settings, **kwargs)
