"""Save models with or without their pretrained parts, and load them again."""

import os
import re
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.pretrained_parts.loading import (
    HUB_ARGUMENTS,
    is_quantized,
    listed,
    refuse_lost_weights,
    weights_of,
)
from hf_any3d.modeling.pretrained_parts.tensors import (
    Fingerprint,
    OwnTensor,
    differing,
    merged_adapters,
    own_state,
    own_tensors,
)

_FINGERPRINT = "_opened_with"


def remember_weights(part: nn.Module) -> None:
    """Remember the weights that a part was loaded with, to detect changes when it is saved."""
    vars(part)[_FINGERPRINT] = Fingerprint.of(own_state(part))


def is_unchanged(part: nn.Module) -> bool:
    """Return whether a part has the weights that `remember_weights` saw; False if it saw none."""
    remembered: Fingerprint | None = vars(part).get(_FINGERPRINT)
    return remembered is not None and not remembered.changed(own_state(part))


def refuse_merged_adapters(model: nn.Module) -> None:
    """Raise an error if an adapter is temporarily merged into the weights, which then differ from the original ones.

    Raises:
        ValueError: Naming the adapters.
    """
    if merged := merged_adapters(model):
        raise ValueError(
            f"the adapter {', '.join(map(repr, merged))} is merged into the weights; expected unmerge_adapter() "
            "before saving, or merge_and_unload() to keep it merged"
        )


class PretrainedPartsMixin:
    """For all `PreTrainedModel` classes: how they open and are saved, with parts whose weights are kept elsewhere.

    `config.parts` records where the weights of each part come from. A part that still has these weights is not saved;
    one that was changed, by training or by merging an adapter, is stored with the model. Loading fetches the parts
    from their repositories, checks that they are the recorded ones, and refuses a model that lacks weights that it was
    saved with: transformers initializes what is missing at random and only logs it.
    """

    # Path of each part's module in the model that owns it. Parts without a module are in no saved file.
    _part_paths: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Load a model; see `LibraryModelMixin.from_pretrained`."""
        name, returns_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        with weights_of(name):
            model, info = cls._from_full_repository(name, *args, output_loading_info=True, **kwargs)
        if name is not None and info["missing_keys"]:
            hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
            refuse_lost_weights(model, os.fspath(name), info["missing_keys"], hub)
        return (model, info) if returns_info else model

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        return super().from_pretrained(name, *args, **kwargs)

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """Load the recorded weights of a part again, for comparison if its precision was changed.

        Raises:
            OSError, ValueError, RuntimeError: If they cannot be loaded.
        """
        raise NotImplementedError(f"{type(self).__name__} must define reopened_state to load {name!r}")

    def part_tensors(self, name: str) -> list[OwnTensor]:
        """Return the tensors of a part that come from its own checkpoint, without adapters."""
        return own_tensors(self.get_submodule(self._part_paths[name]))

    def changed_tensors(self, name: str) -> list[str]:
        """Return the names of a part's tensors that changed since it was loaded; all of them if that is unknown.

        Raises:
            ValueError: If an adapter is temporarily merged into the part.
        """
        part = self.get_submodule(self._part_paths[name])
        refuse_merged_adapters(part)
        tensors = {own.name: own.tensor for own in self.part_tensors(name)}
        remembered: Fingerprint | None = vars(part).get(_FINGERPRINT)  # None if it was built, not loaded
        if remembered is not None and not remembered.is_in_other_precision(tensors):
            return remembered.changed(tensors)
        # Hashes of bytes say nothing about weights in another precision; these are compared with their source, rounded
        # alike. What cannot be compared counts as changed: stored twice, weights do no harm, but lost ones do.
        try:
            changed = differing(tensors, self.reopened_state(name))
        except (OSError, ValueError, RuntimeError):
            return sorted(tensors)
        if not changed:
            vars(part)[_FINGERPRINT] = Fingerprint.of(tensors)
        return changed

    def store_changed_parts(self) -> None:
        """Mark parts whose weights changed as stored with the model, with a warning for each.

        Raises:
            ValueError: If such a part was loaded quantized.
        """
        for name in self._part_paths:
            if not self.config.part(name).is_elsewhere or not (changed := self.changed_tensors(name)):
                continue
            source = self.config.part(name).name_or_path
            some = listed(changed, 3)
            if is_quantized(self.get_submodule(self._part_paths[name])):
                raise ValueError(
                    f"the weights of the quantized {name} are no longer those of {source} ({some}), and quantized "
                    "weights cannot be stored; expected a part loaded in full precision, or adapters that are not "
                    "merged"
                )
            for module in self.modules():
                if isinstance(module, PretrainedPartsMixin) and name in module._part_paths:
                    module.config.change_part(name, stored=True, checksum=None, subfolder=None)
            warnings.warn(
                f"the weights of the {name} are no longer those of {source} ({some}); they are stored with the model",
                UserWarning,
                stacklevel=4,
            )

    def names_stored_elsewhere(self) -> set[str]:
        """Return the state dict names of tensors that are not saved because their part is kept elsewhere."""
        names = set()
        for prefix, owner in self.named_modules():
            if not isinstance(owner, PretrainedPartsMixin):
                continue
            for name, path in owner._part_paths.items():
                if owner.config.part(name).is_elsewhere and owner.owns_part(name):
                    full_path = ".".join(filter(None, (prefix, path)))
                    names |= {f"{full_path}.{own.path}" for own in owner.part_tensors(name)}
                    if is_quantized(owner.get_submodule(path)):
                        names |= {f"{full_path}.{key}" for key in _quantization_keys(owner.get_submodule(path))}
        return names

    def expect_parts_elsewhere(self) -> None:
        """Let weights that are kept elsewhere, those of parts inside a part included, be missing in a saved model.

        Called at the end of `__init__`.
        """
        owners = [(path, owner) for path, owner in self.named_modules() if isinstance(owner, PretrainedPartsMixin)]
        self._keys_to_ignore_on_load_missing = {
            pattern
            for path, owner in owners
            for name, place in owner._part_paths.items()
            if owner.owns_part(name) and owner.config.part(name).is_elsewhere
            for pattern in _patterns_of(owner, name, ".".join(filter(None, (path, place))))
        }

    def owns_part(self, name: str) -> bool:
        """Return whether a part belongs to this model, not to a submodel, and is not disabled by its config."""
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
        """Enable all adapters and fully trained modules (`modules_to_save`), which transformers leaves disabled."""
        super().enable_adapters()
        from peft.utils import ModulesToSaveWrapper  # here, since models without adapters open without PEFT

        for module in self.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.enable_adapters(enabled=True)


def _patterns_of(owner: PretrainedPartsMixin, name: str, path: str) -> list[str]:
    """Return patterns of the names of a part's tensors, without those of adapters in it, which are elsewhere never."""
    tensors = owner.part_tensors(name)
    if any(own.path != own.name for own in tensors):  # adapters wrap what they change
        return [rf"^{re.escape(f'{path}.{own.path}')}$" for own in tensors]
    return [rf"^{re.escape(path)}\."]


def _quantization_keys(part: nn.Module) -> list[str]:
    """Return the state dict names of what quantized layers keep besides parameters and buffers."""
    tensors = {name for name, _ in (*part.named_parameters(), *part.named_buffers())}
    layers = tuple(own.path.rpartition(".")[0] + "." for own in own_tensors(part))
    return [key for key in part.state_dict() if key not in tensors and ".lora_" not in key and key.startswith(layers)]
