"""Load models from repositories that hold only an adapter and a config."""

from __future__ import annotations

import copy
import os
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

from hf_any3d.modeling.pretrained_parts.loading_checks import (
    check_arguments,
    class_of_saved,
    refuse_non_finite,
    single_device,
    without_transformers_arguments,
)
from hf_any3d.modeling.pretrained_parts.mixin import HUB_ARGUMENTS, PretrainedPartsMixin, refuse_merged_adapters
from hf_any3d.modeling.pretrained_parts.stored_adapters import load_adapter_into


class AdapterLoadingMixin(PretrainedPartsMixin):
    """For models whose repositories may hold only a PEFT adapter and a config that names its pretrained weights.

    `from_pretrained` then builds the model around the weights that the config names and loads the adapter and all that
    was trained with it; a base class also loads the repository of a model with a head, without the head. Subclasses
    define what is pretrained, where it comes from and how it is identified.
    """

    # Prefixes of config fields that do not affect what an adapter does.
    _settings_without_effect_on_adapters: ClassVar[tuple[str, ...]] = ("parts",)
    # Whether `dtype` applies to the full model, or only to its pretrained weights.
    _has_single_dtype: ClassVar[bool] = False

    @classmethod
    def build_for_adapter(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Build the model of an adapter's repository, without the adapter.

        Args:
            name: Directory or hub repository of the adapter.
            config: The config stored with it.
            hub: `revision`, `token`, `cache_dir` and the like.
            **loading: `dtype`, `attn_implementation`, `device_map` and `quantization_config`; any may be None.
        """
        raise NotImplementedError(f"{cls.__name__} must define build_for_adapter")

    def save_with_adapter(self, directory: str | os.PathLike) -> None:
        """Write all other files that a directory with an adapter needs to be loaded as a model."""
        raise NotImplementedError(f"{type(self).__name__} supports no adapters")

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Check that this model has the pretrained weights that an adapter was trained with.

        Args:
            recorded: The config.json stored with the adapter.
            adapter: Name of the adapter's repository, for messages.

        Raises:
            EncoderMismatchError: If the weights differ.
        """
        raise NotImplementedError(f"{type(self).__name__} supports no adapters")

    def refuse_merged_adapters(self) -> None:
        """Raise an error if an adapter is temporarily merged into the weights.

        Raises:
            ValueError: With the names of the adapters.
        """
        refuse_merged_adapters(self)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Load a model as `PretrainedPartsMixin.from_pretrained` does, or from an adapter's repository.

        Raises:
            EncoderMismatchError: If the pretrained weights differ from those that the model was trained with.
            ValueError: If weights of the saved model are missing or not finite; the message names them.
            TypeError: If an argument is unknown.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        if pretrained_model_name_or_path is None or not _is_adapter_repository(pretrained_model_name_or_path, hub):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        rest = {key: value for key, value in kwargs.items() if key not in hub}
        return cls._from_adapter_repository(os.fspath(pretrained_model_name_or_path), hub, **rest)

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
        model = class_of_saved(cls, config).build_for_adapter(
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
        info = load_adapter_into(model, name, given, ignore_mismatched_sizes)
        model._hf_peft_config_loaded = True
        refuse_non_finite(model, name)
        model.name_or_path = name
        if cls._has_single_dtype and dtype is not None:
            model.to(dtype)
        if device_map is not None:
            model.to(single_device(device_map))
        if not isinstance(model, cls):
            base = model.base_model
            base.peft_config, base._hf_peft_config_loaded = model.peft_config, True
            model = base
        return (model.eval(), info) if output_loading_info else model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PretrainedPartsMixin.save_pretrained` does, with the config next to a loaded adapter.

        Raises:
            ValueError: If a quantized part changed, which cannot be stored.
        """
        if not getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, **kwargs)
            return
        # A base model loaded from the repository of a model with a head is saved under its own class.
        self.config.architectures = [type(self).__name__]
        if kwargs.get("is_main_process", True):
            self.save_with_adapter(save_directory)
        super(PretrainedPartsMixin, self).save_pretrained(save_directory, **kwargs)


def adapter_subfolder(name: str, hub: dict[str, Any], folder: str) -> tuple[str, dict[str, Any]]:
    """Return `from_pretrained` arguments for a part that is stored in a folder of an adapter's repository.

    With `subfolder` of a local directory, transformers would find the adapter above and load it into the part.

    Args:
        name: Directory or hub repository of the adapter.
        hub: `revision`, `subfolder`, `token` and the like.
        folder: Name of the folder.
    """
    path = "/".join(part for part in (hub.get("subfolder"), folder) if part)
    if not os.path.isdir(name):
        return name, hub | {"subfolder": path}
    return os.path.join(name, path), {key: value for key, value in hub.items() if key != "subfolder"}


def _is_adapter_repository(name: str | os.PathLike, hub: dict[str, Any]) -> bool:
    """Whether a directory or hub repository has an adapter and a config, but no full model weights."""
    if find_adapter_config_file(name, **{key: value for key, value in hub.items() if value is not None}) is None:
        return False

    def contains(file: str) -> bool:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        return found is not None

    # An adapter without a config belongs to a model in another repository; transformers loads it.
    return contains(CONFIG_NAME) and not contains(SAFE_WEIGHTS_NAME) and not contains(SAFE_WEIGHTS_INDEX_NAME)
