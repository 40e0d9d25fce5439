"""Save models with or without their pretrained parts, and load them again."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.layers.forward_contract import keep_unpacked
from hf_any3d.modeling.pretrained_parts.loading import (
    HUB_ARGUMENTS,
    class_of_saved,
    is_quantized,
    listed,
    refuse_whole_numbers,
    weights_of,
)
from hf_any3d.modeling.pretrained_parts.tensors import (
    OwnTensor,
    changed_since_loading,
    differing,
    own_tensors,
    remember_weights,
)


def refuse_merged_adapters(model: nn.Module) -> None:
    """Raise a ValueError if PEFT's `merge_adapter` has changed the weights for as long as an adapter is merged."""
    if merged := sorted({name for module in model.modules() for name in vars(module).get("merged_adapters", ())}):
        raise ValueError(
            f"the adapter {', '.join(map(repr, merged))} is merged into the weights; expected unmerge_adapter() "
            "before saving, or merge_and_unload() to keep it merged"
        )


class PretrainedPartsMixin:
    """For all `PreTrainedModel` classes: how they open and are saved, with parts whose weights are kept elsewhere.

    `config.parts` records where the weights of each part come from. A part that still has these weights is not saved;
    one that was changed is stored with the model. Loading fetches the parts, checks that they are the recorded ones,
    and refuses a model that lacks weights that it was saved with, which transformers would initialize at random.
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
        # Quantized weights are whole numbers by intent.
        if hasattr(model, "hf_quantizer"):
            keep_unpacked(model)
        elif name is not None:
            refuse_whole_numbers(model, name, {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs})
        if name is not None and info["missing_keys"]:
            hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
            config = type(model).config_class.from_pretrained(name, **hub)
            saved_class = class_of_saved(type(model), config)
            # Only its names are needed: what the saved class has, the files must hold.
            with stored_settings(name), torch.device("meta"):
                saved = saved_class(config).state_dict()
            prefix = f"{type(model).base_model_prefix}."

            def base_name(key: str) -> str:
                # The name in a base model, without wrappers that a config puts around layers.
                return key.removeprefix(prefix).replace(".base_layer.", ".")

            # Others are those of a new head, or of a module that an argument switched on: new, as in transformers.
            stored = {base_name(key) for key in saved}
            if lost := sorted(key for key in info["missing_keys"] if base_name(key) in stored):
                raise ValueError(
                    f"{name}: the saved {saved_class.__name__} lacks {listed(lost)}; without them its predictions "
                    "would be random. Expected the weights as they were saved"
                )
        return (model, info) if returns_info else model

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        return super().from_pretrained(name, *args, **kwargs)

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """Load the recorded weights of a part again, for comparison if its precision was changed."""
        raise NotImplementedError

    def part_tensors(self, name: str) -> list[OwnTensor]:
        """Return the tensors of a part that come from its own checkpoint, without adapters."""
        return own_tensors(self.get_submodule(self._part_paths[name]))

    def changed_tensors(self, name: str) -> list[str]:
        """Return the names of a part's tensors that changed since it was loaded; all of them if that is unknown."""
        part = self.get_submodule(self._part_paths[name])
        refuse_merged_adapters(part)
        tensors = {own.name: own.tensor for own in self.part_tensors(name)}
        changed = changed_since_loading(part, tensors)
        if changed is not None:
            return changed
        # Hashes of bytes say nothing about weights in another precision; these are compared with their source, rounded
        # alike. What cannot be compared counts as changed: stored twice, weights do no harm, but lost ones do.
        try:
            changed = differing(tensors, self.reopened_state(name))
        except (OSError, ValueError, RuntimeError):
            return sorted(tensors)
        if not changed:
            remember_weights(part, tensors)
        return changed

    def store_changed_parts(self) -> None:
        """Mark parts whose weights changed as stored with the model, with a warning for each."""
        for name in self._part_paths:
            if not self.config.part(name).is_elsewhere or not (changed := self.changed_tensors(name)):
                continue
            source = self.config.part(name).name_or_path
            some = listed(changed, 3)
            if is_quantized(self.get_submodule(self._part_paths[name])):
                raise ValueError(f"the quantized {name} is no longer that of {source} ({some}), and cannot be stored")
            # The model and its base model have configs of their own, which must agree.
            for module in self.modules():
                if isinstance(module, PretrainedPartsMixin) and name in module._part_paths:
                    module.config.change_part(name, stored=True, checksum=None, subfolder=None)
            warnings.warn(
                f"the weights of the {name} are no longer those of {source} ({some}); they are stored with the model",
                stacklevel=4,
            )

    def names_stored_elsewhere(self) -> set[str]:
        """Return the state dict names of tensors that are not saved because their part is kept elsewhere."""
        names = set()
        for path, owned in self._parts_elsewhere():
            names |= {f"{path}.{own.path}" for own in owned}
            part = self.get_submodule(path)
            if is_quantized(part):
                # Its layers keep more in the state dict than parameters and buffers.
                tensors = {key for key, _ in (*part.named_parameters(), *part.named_buffers())}
                layers = tuple(own.path.rpartition(".")[0] + "." for own in own_tensors(part))
                more = (key for key in part.state_dict().keys() - tensors if key.startswith(layers))
                names |= {f"{path}.{key}" for key in more if ".lora_" not in key}
        return names

    def _parts_elsewhere(self) -> Iterator[tuple[str, list[OwnTensor]]]:
        """Yield paths and tensors of parts that are kept elsewhere, of this model and of models inside it."""
        for prefix, owner in self.named_modules():
            if isinstance(owner, PretrainedPartsMixin):
                for name, path in owner._part_paths.items():
                    if owner.owns_part(name) and owner.config.part(name).is_elsewhere:
                        yield ".".join(filter(None, (prefix, path))), owner.part_tensors(name)

    def expect_parts_elsewhere(self) -> None:
        """Let weights that are kept elsewhere be missing in a saved model; called at the end of `__init__`."""
        patterns = set()
        for path, tensors in self._parts_elsewhere():
            if any(own.path != own.name for own in tensors):
                # Adapters wrap what they change; their own weights are never elsewhere.
                patterns |= {rf"^{re.escape(f'{path}.{own.path}')}$" for own in tensors}
            else:
                patterns.add(rf"^{re.escape(path)}\.")
        self._keys_to_ignore_on_load_missing = patterns

    def owns_part(self, name: str) -> bool:
        """Return whether a part belongs to this model, not to a submodel, and is not disabled by its config."""
        parent, _, child = self._part_paths[name].rpartition(".")
        try:
            return self.get_submodule(parent)._modules.get(child) is not None
        except AttributeError:
            return False

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, without parts that are kept elsewhere and did not change."""
        owners = [module for module in self.modules() if isinstance(module, PretrainedPartsMixin)]
        # Before anything is written, since weights that changed are then saved and named in the config.
        for owner in owners if kwargs.get("is_main_process", True) else ():
            if any(owner.owns_part(name) for name in owner._part_paths):
                owner.store_changed_parts()
        # Computed at each call, as parts may have been changed or stored since the last one.
        self._keys_to_ignore_on_save = self.names_stored_elsewhere()
        super().save_pretrained(save_directory, **kwargs)

    def enable_adapters(self) -> None:
        """Enable all adapters and fully trained modules (`modules_to_save`), which transformers leaves disabled."""
        super().enable_adapters()
        from peft.utils import ModulesToSaveWrapper  # here, since models without adapters open without PEFT

        for module in self.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.enable_adapters(enabled=True)
