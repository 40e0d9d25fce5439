"""Models with pretrained parts: how they are saved without them, or with them, and opened again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.pretrained_parts.bits import is_quantized
from hf_any3d.modeling.pretrained_parts.completeness import refuse_lost_weights, refuse_non_finite, refuse_other_shapes
from hf_any3d.modeling.pretrained_parts.tensors import (
    Fingerprint,
    OwnTensor,
    differing,
    merged_adapters,
    own_state,
    own_tensors,
)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where a repository is and how it is read."""
_FINGERPRINT = "_opened_with"


def remember_weights(part: nn.Module) -> None:
    """Remember the weights that a part was opened with, to find out when it is saved whether they changed."""
    vars(part)[_FINGERPRINT] = Fingerprint.of(own_state(part))


def remembered_weights(part: nn.Module) -> Fingerprint | None:
    """What `remember_weights` remembered; None for a part that was not opened but built."""
    return vars(part).get(_FINGERPRINT)


def refuse_merged_adapters(model: nn.Module) -> None:
    """Raise an error if an adapter is added to weights for the time being: they are not what they are without it.

    Raises:
        ValueError: With the names of the adapters.
    """
    if merged := merged_adapters(model):
        raise ValueError(
            f"the adapter {', '.join(map(repr, merged))} is merged into the weights; expected unmerge_adapter() "
            "before saving, or merge_and_unload() to keep it merged"
        )


class PretrainedPartsMixin:
    """For `PreTrainedModel` classes with parts that are pretrained and may be kept elsewhere.

    `config.parts` records of each part where its weights come from. A part that still has these weights is left out
    of what is saved; one that was changed, by training or by merging an adapter, is stored with the model. Opening
    fetches the parts from where they are, checks that they are the recorded ones, and refuses a model that lacks
    weights.
    """

    # Part: path of its module in the model that owns it. Parts without a module are parts of no saved file.
    _part_paths: ClassVar[Mapping[str, str]] = {}

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """The weights of a part as they are where the config says, for a part whose precision was changed.

        Raises:
            OSError, ValueError, RuntimeError: If they cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how {name!r} is opened")

    def part_tensors(self, name: str) -> list[OwnTensor]:
        """The tensors of a part that come from its own checkpoint, without adapters in it."""
        return list(own_tensors(self.get_submodule(self._part_paths[name])))

    def changed_tensors(self, name: str) -> list[str]:
        """Names of the tensors of a part that are not those it was opened with; all of them where nobody can say.

        Raises:
            ValueError: If an adapter is merged into the part for the time being.
        """
        part = self.get_submodule(self._part_paths[name])
        refuse_merged_adapters(part)
        tensors = {own.name: own.tensor for own in self.part_tensors(name)}
        remembered = remembered_weights(part)
        if remembered is not None and not remembered.is_in_other_precision(tensors):
            return remembered.changed(tensors)
        try:
            changed = differing(tensors, self.reopened_state(name))
        except (OSError, ValueError, RuntimeError):
            return sorted(tensors)
        if not changed:
            vars(part)[_FINGERPRINT] = Fingerprint.of(tensors)
        return changed

    def store_part(self, name: str) -> None:
        """Store a part with the model from now on, whatever its repository holds.

        Raises:
            ValueError: If the part was opened in 4 or 8 bits, which are not its weights.
        """
        if is_quantized(self.get_submodule(self._part_paths[name])):
            raise ValueError(f"the {name} was opened quantized; expected full weights to store")
        for module in self.modules():
            if isinstance(module, PretrainedPartsMixin) and name in module._part_paths:
                module.config.change_part(name, stored=True, checksum=None, subfolder=None)

    def store_changed_parts(self) -> None:
        """Have parts stored with the model whose weights are no longer those that the config names; warn of each.

        Raises:
            ValueError: If such a part was opened quantized.
        """
        for name in self._part_paths:
            if not self.config.part(name).is_elsewhere or not (changed := self.changed_tensors(name)):
                continue
            home = self.config.part(name).name_or_path
            some = ", ".join(changed[:3]) + f" and {len(changed) - 3} more" * (len(changed) > 3)
            if is_quantized(self.get_submodule(self._part_paths[name])):
                raise ValueError(
                    f"the weights of the quantized {name} are not those of {home} any more ({some}), and quantized "
                    "weights cannot be stored; expected a part opened in full precision, or adapters that are not "
                    "merged"
                )
            self.store_part(name)
            warnings.warn(
                f"the weights of the {name} are not those of {home} any more ({some}); they are stored with the model",
                UserWarning,
                stacklevel=4,
            )

    def names_stored_elsewhere(self) -> set[str]:
        """Names, in the state dict, of tensors that are not saved because a part that is kept elsewhere holds them."""
        names = set()
        for prefix, owner in self.named_modules():
            if not isinstance(owner, PretrainedPartsMixin):
                continue
            for name, path in owner._part_paths.items():
                if owner.config.part(name).is_elsewhere and owner.owns_part(name):
                    where = ".".join(filter(None, (prefix, path)))
                    names |= {f"{where}.{own.path}" for own in owner.part_tensors(name)}
                    if is_quantized(owner.get_submodule(path)):
                        names |= {f"{where}.{key}" for key in _notes_of_quantizer(owner.get_submodule(path))}
        return names

    def owns_part(self, name: str) -> bool:
        """Whether a part is in this very model, not in one inside it, and not left out by its config."""
        parent, _, child = self._part_paths[name].rpartition(".")
        try:
            return self.get_submodule(parent)._modules.get(child) is not None
        except AttributeError:
            return False

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, without parts that are kept elsewhere and did not change.

        Raises:
            ValueError: If a quantized part changed, which cannot be stored.
        """
        owners = [module for module in self.modules() if isinstance(module, PretrainedPartsMixin)]
        for owner in owners if kwargs.get("is_main_process", True) else ():
            if any(owner.owns_part(name) for name in owner._part_paths):
                owner.store_changed_parts()
        self._keys_to_ignore_on_save = self.names_stored_elsewhere()
        super().save_pretrained(save_directory, **kwargs)

    def enable_adapters(self) -> None:
        """Enable all adapters, with the modules trained in full beside them, which transformers leaves disabled."""
        super().enable_adapters()
        for module in self.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.enable_adapters(enabled=True)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Open a model as `PreTrainedModel.from_pretrained` does.

        Raises:
            EncoderMismatchError: If the pretrained weights found are not those that the model was made with.
            ValueError: If weights are missing that the saved model had, have other shapes than the config of a
                directory asks for, or are not finite; they are named.
            TypeError: If an argument is unknown.
        """
        name = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        wants_info = kwargs.pop("output_loading_info", False)
        if name is not None and os.path.isdir(name):
            settings = {key: value for key, value in kwargs.items() if key not in hub}
            refuse_other_shapes(cls, name, hub, settings)
        model, info = cls._from_full_repository(name, *args, output_loading_info=True, **kwargs)
        if name is not None:
            refuse_lost_weights(model, os.fspath(name), info, hub)
            refuse_non_finite(model, os.fspath(name))
        return (model, info) if wants_info else model

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        return super().from_pretrained(name, *args, **kwargs)


def _notes_of_quantizer(part: nn.Module) -> list[str]:
    """Names, in the state dict, of what quantized layers keep beside their parameters and buffers."""
    tensors = {name for name, _ in (*part.named_parameters(), *part.named_buffers())}
    layers = tuple(own.path.rpartition(".")[0] + "." for own in own_tensors(part))
    return [key for key in part.state_dict() if key not in tensors and ".lora_" not in key and key.startswith(layers)]
