"""Models with pretrained parts: how they are saved without them, or with them, and opened again."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

from hf_any3d.modeling.pretrained_parts.adapters import put_adapter_into
from hf_any3d.modeling.pretrained_parts.bits import is_quantized
from hf_any3d.modeling.pretrained_parts.completeness import (
    check_arguments,
    class_of_saved,
    refuse_lost_weights,
    refuse_non_finite,
    without_transformers_arguments,
)
from hf_any3d.modeling.pretrained_parts.placing import single_device
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


class PretrainedPartsMixin:
    """For `PreTrainedModel` classes with parts that are pretrained and may be kept elsewhere.

    `config.parts` records of each part where its weights come from. A part that still has these weights is left out
    of what is saved; one that was changed, by training or by merging an adapter, is stored with the model. Opening
    fetches the parts from where they are, checks that they are the recorded ones, and refuses a model that lacks
    weights.

    A repository may also hold nothing but a PEFT adapter and a config: `from_pretrained` then builds the model around
    the parts and loads the adapter and all that was trained beside it. A base class opens the repository of a model
    with a head, and leaves the head out.
    """

    # Part: path of its module in the model that owns it. Parts without a module are parts of no saved file.
    _part_paths: ClassVar[Mapping[str, str]] = {}
    # Beginnings of the names of settings that say nothing about what an adapter does.
    _settings_apart_from_adapters: ClassVar[tuple[str, ...]] = ("parts",)
    # Whether `dtype` is that of the whole model, or of what is pretrained alone.
    _one_precision: ClassVar[bool] = False

    # What a subclass says of its parts.

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """The weights of a part as they are where the config says, for a part whose precision was changed.

        Raises:
            OSError, ValueError, RuntimeError: If they cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how {name!r} is opened")

    @classmethod
    def build_around_pretrained(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Build the model that the adapter in a repository was put into, as it was before.

        Args:
            name: Directory or hub repository of the adapter.
            config: The config beside it.
            hub: `revision`, `token`, `cache_dir` and the like.
            **loading: `dtype`, `attn_implementation`, `device_map` and `quantization_config`; any may be None.
        """
        raise NotImplementedError(f"{cls.__name__} does not say what its adapters stand on")

    def save_beside_adapter(self, directory: str | os.PathLike) -> None:
        """Write what a directory with an adapter lacks to be a whole model."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its adapters stand on")

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Compare what is pretrained in this model with what an adapter was trained around.

        Args:
            recorded: The config.json beside the adapter.
            adapter: Name of the adapter's repository, for messages.

        Raises:
            EncoderMismatchError: If the weights are others.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its adapters stand on")

    # Parts, whether they changed, and what is saved.

    def part_tensors(self, name: str) -> list[OwnTensor]:
        """The tensors of a part that come from its own checkpoint, without adapters in it."""
        return list(own_tensors(self.get_submodule(self._part_paths[name])))

    def changed_tensors(self, name: str) -> list[str]:
        """Names of the tensors of a part that are not those it was opened with; all of them where nobody can say.

        Raises:
            ValueError: If an adapter is merged into the part for the time being.
        """
        part = self.get_submodule(self._part_paths[name])
        if merged := merged_adapters(part):
            raise ValueError(
                f"the adapter {', '.join(map(repr, merged))} is merged into the {name}; expected unmerge_adapter() "
                "before saving, or merge_and_unload() to keep it merged"
            )
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

    def names_kept_elsewhere(self) -> set[str]:
        """Names, in the state dict, of tensors that are not saved because a part that is kept elsewhere holds them."""
        names = set()
        for prefix, owner in self.named_modules():
            if not isinstance(owner, PretrainedPartsMixin):
                continue
            for name, path in owner._part_paths.items():
                if owner.config.part(name).is_elsewhere and owner.owns_part(name):
                    where = ".".join(filter(None, (prefix, path)))
                    names |= {f"{where}.{own.path}" for own in owner.part_tensors(name)}
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
        is_main_process = kwargs.get("is_main_process", True)
        if getattr(self, "_hf_peft_config_loaded", False):
            # A base opened from the repository of a model with a head is saved as what it is.
            self.config.architectures = [type(self).__name__]
            if is_main_process:
                self.save_beside_adapter(save_directory)
        else:
            owners = [module for module in self.modules() if isinstance(module, PretrainedPartsMixin)]
            for owner in owners if is_main_process else ():
                if any(owner.owns_part(name) for name in owner._part_paths):
                    owner.store_changed_parts()
            self._keys_to_ignore_on_save = self.names_kept_elsewhere()
        super().save_pretrained(save_directory, **kwargs)

    # Opening.

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Open a model as `PreTrainedModel.from_pretrained` does, or put one together from an adapter's repository.

        Raises:
            EncoderMismatchError: If the pretrained weights found are not those that the model was made with.
            ValueError: If weights are missing that the saved model had, or are not finite; they are named.
            TypeError: If an argument is unknown.
        """
        name = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        if name is not None and _holds_adapter_only(name, hub):
            rest = {key: value for key, value in kwargs.items() if key not in hub}
            return cls._from_adapter_repository(os.fspath(name), hub, **rest)
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = cls._from_whole_repository(name, *args, output_loading_info=True, **kwargs)
        if name is not None:
            refuse_lost_weights(model, os.fspath(name), info, hub)
            refuse_non_finite(model, os.fspath(name))
        return (model, info) if wants_info else model

    @classmethod
    def _from_whole_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        return super().from_pretrained(name, *args, **kwargs)

    @classmethod
    def _from_adapter_repository(
        cls,
        name: str,
        hub: dict[str, Any],
        config: PreTrainedConfig | str | os.PathLike | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        quantization_config: Any = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> PreTrainedModel:
        overrides = without_transformers_arguments(overrides, "a repository that holds an adapter")
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub)
        config = copy.deepcopy(config)
        check_arguments(cls, config, overrides)
        for key, value in overrides.items():
            setattr(config, key, value)
        dtype = dtype or torch_dtype
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        model = class_of_saved(cls, config).build_around_pretrained(
            name,
            config,
            hub,
            dtype=dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            quantization_config=quantization_config,
        )
        if not isinstance(model.base_model, cls) and not isinstance(model, cls):
            raise ValueError(f"{name}: holds a {type(model).__name__}, which {cls.__name__} cannot open")
        given = {key: value for key, value in hub.items() if value is not None}
        info = put_adapter_into(model, name, given, ignore_mismatched_sizes)
        model._hf_peft_config_loaded = True
        refuse_non_finite(model, name)
        model.name_or_path = name
        if cls._one_precision and dtype is not None:
            model.to(dtype)
        if device_map is not None:
            model.to(single_device(device_map))
        if not isinstance(model, cls):
            base = model.base_model
            base.peft_config, base._hf_peft_config_loaded = model.peft_config, True
            model = base
        return (model.eval(), info) if output_loading_info else model.eval()


def _holds_adapter_only(name: str | os.PathLike, hub: dict[str, Any]) -> bool:
    """Whether a directory or hub repository has an adapter and a config, but no weights of a whole model."""
    if find_adapter_config_file(name, **{key: value for key, value in hub.items() if value is not None}) is None:
        return False

    def holds(file: str) -> bool:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        return found is not None

    # Without a config an adapter is but a part of a model in another repository; transformers knows how to open it.
    return holds(CONFIG_NAME) and not holds(SAFE_WEIGHTS_NAME) and not holds(SAFE_WEIGHTS_INDEX_NAME)
