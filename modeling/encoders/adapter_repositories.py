"""Repositories of adapters in a frozen encoder: the encoder comes from its own repository."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.adapter_doors import AdapterDoorsMixin
from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin, load_encoder
from hf_any3d.modeling.encoders.placing import encoder_loading
from hf_any3d.modeling.encoders.sources import EncoderMismatchError
from hf_any3d.modeling.encoders.stored_encoder import load_stored_encoder, save_stored_encoder


class AdapterRepositoryMixin(AdapterDoorsMixin, FrozenEncoderMixin):
    """For models with a frozen encoder whose repositories may hold nothing but a PEFT adapter and a config.

    `from_pretrained` then builds the model around the encoder that the config names and loads the adapter, the trained
    tokenizer and the head into it.
    """

    _settings_apart_from_adapters = ("encoder_",)

    @classmethod
    def build_around_pretrained(
        cls,
        name: str,
        config: PreTrainedConfig,
        hub: dict[str, Any],
        dtype: Any = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
    ) -> PreTrainedModel:
        """The model around its frozen encoder; see `AdapterDoorsMixin`."""
        if attn_implementation is not None:
            config.encoder_config._attn_implementation = attn_implementation
        loading = encoder_loading(device_map, quantization_config)
        if config.encoder_name_or_path is None:
            encoder = load_stored_encoder(name, config, dtype, hub, **loading)
        else:
            encoder = load_encoder(config, dtype, **loading)
        return cls(config, encoder)

    def save_beside_adapter(self, directory: str | os.PathLike) -> None:
        """Write the config, and the encoder where the config says that it has no other home."""
        self.config.save_pretrained(directory)
        save_stored_encoder(self, directory)

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Compare checksums of the encoders; see `AdapterDoorsMixin`."""
        ours, theirs = self.config.encoder_checksum, recorded.get("encoder_checksum")
        if ours is not None and theirs is not None and ours != theirs:
            raise EncoderMismatchError(
                f"{adapter}: the adapter was trained around encoder {recorded.get('encoder_name_or_path')!r} with "
                f"checksum {theirs}; the base model holds {self.config.encoder_name_or_path!r} with {ours}. Other "
                f"weights would change results silently. Build the base model with "
                f"revision={recorded.get('encoder_revision')!r}, or open the adapter's repository by an auto class, "
                "which does so by itself"
            )

    @classmethod
    def _from_whole_repository(
        cls, name: str | os.PathLike | None, *args: Any, quantization_config: Any = None, **kwargs: Any
    ) -> PreTrainedModel:
        opened = super()._from_whole_repository(name, *args, **kwargs)
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
