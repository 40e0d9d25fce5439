"""What our classes say of themselves where they are saved: in model cards, and to programs without this package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class CardInfo:
    """A model class as its model card describes it.

    Args:
        system: The method that the class belongs to: "any2point", "act", "act_autoencoder" or "minigpt3d"; a key of
            `hf_any3d.model_card.systems.SYSTEMS`.
        task: What the class is used for; a key of `hf_any3d.model_card.tasks.TASKS`.
        opens: Class or auto class that opens a saved model in the card's example; None for the auto class of the task.
    """

    system: str
    task: str
    opens: str | None = None


class CardMixin:
    """Writes a model card whenever the model is saved or pushed.

    A subclass says what it is in `card_info`.
    """

    card_info: ClassVar[CardInfo]
    # (model, directory, name of the repository or None): cards need huggingface_hub, which models do not import;
    # `hf_any3d.registration` fills this in.
    write_card: ClassVar[Callable[[Any, str | os.PathLike, str | None], Any]]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with a model card (`README.md`) beside the weights."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self.write_card(self, save_directory, None)

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just put the repository's card here, or its empty template where there is none.
        self.write_card(self, working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


PACKAGE = "hf_any3d: pip install hf-any3d, then import hf_any3d before you open it."
"""Where programs that have not imported this package are sent."""


class NamesPackageMixin:
    """For configs and processors: lets the error of a program without this package say what it lacks.

    Auto classes that do not know a saved class say which repository its code is in, if the file names one under
    `auto_map`. There is no code in our repositories; the name that stands there is the package's, with the way to get
    it. It is no possible name of a repository, so nobody can put code under it. Programs with the package never come
    to it: the registered classes go first.
    """

    # Names of the auto classes that open it.
    _opened_by: ClassVar[tuple[str, ...]] = ("AutoConfig",)

    def to_json_file(self, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the file that `save_pretrained` writes, with the name of the package."""
        self.auto_map = dict.fromkeys(self._opened_by, f"{PACKAGE}--hf_any3d.{type(self).__name__}")
        try:
            super().to_json_file(json_file_path, *args, **kwargs)
        finally:
            del self.auto_map

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from what such a file holds, without the name of the package."""
        return super().from_dict({name: value for name, value in config_dict.items() if name != "auto_map"}, **kwargs)
