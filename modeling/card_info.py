"""What each model class says of itself for model cards, and the hook that writes a card wherever a model is saved."""

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
