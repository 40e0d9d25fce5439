"""Opening repositories that hold an adapter and a config: the encoder comes from its own repository."""

from __future__ import annotations

import os
from collections.abc import Callable
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

from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin, load_encoder
from hf_any3d.modeling.encoders.placing import encoder_loading
from hf_any3d.modeling.encoders.stored_encoder import load_stored_encoder, save_stored_encoder

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class AdapterRepositoryMixin(FrozenEncoderMixin):
    """For models with a frozen encoder whose repositories may hold nothing but a PEFT adapter and a config.

    `from_pretrained` then builds the model around the encoder that the config names and loads the adapter, the trained
    tokenizer and the head into it; a base class opens the repository of a model with a head, and leaves the head out.
    """

    # (model, repository, hub arguments) -> missing, unexpected and mismatched keys. Adapters are PEFT's, which models
    # know nothing of: `hf_any3d.registration` fills this in.
    put_adapter_into: ClassVar[Callable[[PreTrainedModel, str, dict[str, Any]], dict[str, list[str]]]]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Open a model as `PreTrainedModel.from_pretrained` does, or put one together from an adapter's repository.

        Raises:
            EncoderMismatchError: If the encoder found has other weights than the model was trained with.
        """
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        if pretrained_model_name_or_path is None or not _holds_adapter_only(pretrained_model_name_or_path, hub):
            return cls._from_whole_repository(pretrained_model_name_or_path, *args, **kwargs)
        return cls._from_adapter_repository(
            os.fspath(pretrained_model_name_or_path), hub, **{k: v for k, v in kwargs.items() if k not in hub}
        )

    @classmethod
    def _from_whole_repository(
        cls, name: str | os.PathLike | None, *args: Any, quantization_config: Any = None, **kwargs: Any
    ) -> PreTrainedModel:
        opened = super().from_pretrained(name, *args, **kwargs)
        if quantization_config is None:
            return opened
        model = opened[0] if isinstance(opened, tuple) else opened
        # What trains stays in full precision; only the encoder is opened anew.
        owner = getattr(model, model.base_model_prefix, model)
        if model.config.encoder_name_or_path is None:
            raise ValueError(
                f"quantization_config: {name} stores its encoder among its own weights; only an encoder with a "
                "repository of its own can be quantized when it is opened"
            )
        place = {"device_map": {"": owner.device}, "quantization_config": quantization_config}
        owner.adopt_encoder(load_encoder(model.config, owner.encoder.dtype, **place))
        owner._encoder_is_random = False
        return opened

    @classmethod
    def _from_adapter_repository(
        cls,
        name: str,
        hub: dict[str, Any],
        config: PreTrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        quantization_config: Any = None,
        output_loading_info: bool = False,
        **overrides: Any,
    ) -> PreTrainedModel:
        if config is None:
            config = cls.config_class.from_pretrained(name, **hub)
        for key, value in overrides.items():
            if hasattr(config, key):
                setattr(config, key, value)
        if attn_implementation is not None:
            config.encoder_config._attn_implementation = attn_implementation
        dtype = dtype or torch_dtype
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        loading = encoder_loading(device_map, quantization_config)
        if config.encoder_name_or_path is None:
            encoder = load_stored_encoder(name, config, dtype, hub, **loading)
        else:
            encoder = load_encoder(config, dtype, **loading)
        model = cls._saved_class(config)(config, encoder)
        if not isinstance(model.base_model, cls) and not isinstance(model, cls):
            raise ValueError(f"{name}: holds a {type(model).__name__}, which {cls.__name__} cannot open")
        info = cls.put_adapter_into(model, name, {key: value for key, value in hub.items() if value is not None})
        model._hf_peft_config_loaded = True
        if info["missing_keys"]:
            raise ValueError(f"{name}: the adapter lacks {', '.join(info['missing_keys'][:8])}")
        model.name_or_path = name
        if not isinstance(model, cls):
            base = model.base_model
            base.peft_config, base._hf_peft_config_loaded = model.peft_config, True
            model = base
        if device_map is not None:
            model = model.to(encoder.device)
        return (model.eval(), info) if output_loading_info else model.eval()

    @classmethod
    def _saved_class(cls, config: PreTrainedConfig) -> type[PreTrainedModel]:
        root = next(base for base in cls.__mro__ if AdapterRepositoryMixin in base.__bases__)
        return next((model for model in _subclasses(root) if model.__name__ in (config.architectures or ())), cls)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, and the config beside a loaded adapter too."""
        if getattr(self, "_hf_peft_config_loaded", False):
            # A base opened from the repository of a model with a head is saved as what it is.
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(save_directory)
            if kwargs.get("is_main_process", True):
                save_stored_encoder(self, save_directory)
        super().save_pretrained(save_directory, **kwargs)


def _holds_adapter_only(name: str | os.PathLike, hub: dict[str, Any]) -> bool:
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


def _subclasses(root: type) -> set[type]:
    children = set(root.__subclasses__())
    return children.union(*(_subclasses(child) for child in children))
