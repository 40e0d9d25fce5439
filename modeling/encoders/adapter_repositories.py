"""Repositories of adapters in a frozen encoder: the encoder comes from its own repository."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.adapter_doors import AdapterDoorsMixin
from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin, encoder_settings, load_encoder
from hf_any3d.modeling.encoders.placing import encoder_loading
from hf_any3d.modeling.encoders.sources import EncoderMismatchError
from hf_any3d.modeling.encoders.stored_encoder import load_stored_encoder, save_stored_encoder

_Model = TypeVar("_Model", bound=PreTrainedModel)


class AdapterRepositoryMixin(AdapterDoorsMixin, FrozenEncoderMixin):
    """For models with a frozen encoder whose repositories may hold nothing but a PEFT adapter and a config.

    `from_encoder_pretrained` builds an untrained model around an encoder. `from_pretrained` builds it around the
    encoder that the config beside an adapter names, and loads the adapter, the trained tokenizer and the head into it.
    """

    _settings_apart_from_adapters = ("encoder_",)

    @classmethod
    def from_encoder_pretrained(
        cls: type[_Model],
        encoder_name_or_path: str | os.PathLike | None = None,
        *,
        config: PreTrainedConfig | None = None,
        tower: str | None = None,
        revision: str | None = None,
        num_layers: int | None = None,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        quantization_config: Any = None,
        **config_kwargs: Any,
    ) -> _Model:
        """Wrap a pretrained text, vision or audio encoder: it stays frozen, all around it starts untrained.

        Args:
            encoder_name_or_path: Hub name or local directory of a transformers checkpoint.
            config: A whole configuration instead, such as that of a saved model: the encoder that it names is loaded
                and checked. This makes the base for `PeftModel.from_pretrained(base, saved)`.
            tower: Which encoder of a composite checkpoint ("text" or "vision" of CLIP).
            revision: Branch, tag or commit of the encoder's repository; the commit is pinned in the config.
            num_layers: Use only the first layers of the encoder.
            dtype: Precision of the encoder's weights, float32 by default; all that trains is float32.
            attn_implementation: "sdpa", "eager", "flash_attention_2" … for the encoder.
            device_map: The device of the whole model: "cuda:1", "auto" for the fastest one …
            quantization_config: How the frozen encoder's weights are kept, such as `BitsAndBytesConfig(…)` in 8 or 4
                bits; all that trains is float32.
            **config_kwargs: Anything of the class's `config_class`, `Any2PointConfig` for example: `num_labels`,
                `id2label`, …

        Raises:
            UnsupportedEncoder: If the encoder's family or tower is not supported.
            ValueError: If both or neither of name and config are given.
            TypeError: For an argument that neither this method nor the config knows.
        """
        if (encoder_name_or_path is None) == (config is None):
            raise ValueError("give either encoder_name_or_path or a config that names an encoder")
        # A config takes any word; one that it does not know would do nothing.
        known = cls.config_class()
        if unknown := [name for name in config_kwargs if not hasattr(known, name)]:
            raise TypeError(
                f"{cls.__name__}.from_encoder_pretrained has no argument {unknown[0]!r}; expected its own or one of "
                f"{cls.config_class.__name__}"
            )
        if config is None:
            settings = encoder_settings(encoder_name_or_path, tower, revision, num_layers)
            config = cls.config_class(**settings, **config_kwargs, attn_implementation=attn_implementation)
        elif attn_implementation is not None:
            config.encoder_config._attn_implementation = attn_implementation
        encoder = load_encoder(config, dtype, **encoder_loading(device_map, quantization_config))
        model = cls(config, encoder=encoder).eval()
        return model if device_map is None else model.to(encoder.device)

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
