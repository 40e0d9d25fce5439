"""Repositories of adapters in a frozen encoder, which comes from its own repository or lies beside the adapter."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.frozen_encoder import (
    FrozenEncoderMixin,
    encoder_settings,
    freeze,
    load_encoder,
    open_encoder,
)
from hf_any3d.modeling.pretrained_parts import (
    PretrainedPart,
    adapter_subfolder,
    encoder_loading,
    is_quantized,
    own_state,
    tensors_checksum,
)
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, open_recorded
from hf_any3d.modeling.pretrained_parts.tensors import CHECKSUM_PREFIX, differing

FOLDER = "encoder"
"""Where an adapter's repository keeps an encoder that no repository of its own offers."""
_Model = TypeVar("_Model", bound=PreTrainedModel)


class AdapterRepositoryMixin(FrozenEncoderMixin):
    """For models with a frozen encoder whose repositories may hold nothing but a PEFT adapter and a config.

    `from_encoder_pretrained` builds an untrained model around an encoder. `from_pretrained` builds it around the
    encoder that the config beside an adapter names, and loads the adapter, the trained tokenizer and the head into it.
    """

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
    def build_for_adapter(
        cls,
        name: str,
        config: PreTrainedConfig,
        hub: dict[str, Any],
        dtype: Any = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
    ) -> PreTrainedModel:
        """Build the model around its frozen encoder; see `PretrainedPartsMixin`."""
        if attn_implementation is not None:
            config.encoder_config._attn_implementation = attn_implementation
        loading = encoder_loading(device_map, quantization_config)
        if config.part("encoder").is_elsewhere:
            encoder = load_encoder(config, dtype, **loading)
        else:
            encoder = _load_stored_encoder(name, config, dtype, hub, **loading)
        return cls(config, encoder)

    def save_with_adapter(self, directory: str | os.PathLike) -> None:
        """Write the config, and the encoder where it is not the one that the config names, or the config names none.

        Raises:
            ValueError: If the encoder has to be stored and is quantized.
        """
        owner = getattr(self, self.base_model_prefix, self)
        owner.store_changed_parts()
        config = self.config
        if not config.part("encoder").is_elsewhere:
            if is_quantized(owner.encoder):
                raise ValueError(
                    "the encoder was loaded quantized; expected full weights to store next to the adapter"
                )
            state = own_state(owner.encoder)
            owner.encoder.save_pretrained(Path(directory) / FOLDER, state_dict=dict(state))
            config = copy.deepcopy(config)
            config.change_part("encoder", stored=True, subfolder=FOLDER, checksum=tensors_checksum(state))
        config.save_pretrained(directory)

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Compare the encoders' weights; see `PretrainedPartsMixin`.

        In another precision than a stored encoder has, there is nothing to compare.
        """
        config = type(self.config).from_dict(recorded)
        ours, theirs = self.config.part("encoder"), config.part("encoder")
        encoder = getattr(self, self.base_model_prefix, self).encoder
        if (expected := theirs.checksum) is None:
            return
        if not theirs.is_elsewhere:
            if encoder.dtype != (config.encoder_config.dtype or torch.float32):
                return
            found = tensors_checksum(own_state(encoder))
        elif ours.is_elsewhere and not getattr(self, self.base_model_prefix, self).changed_tensors("encoder"):
            found = _checksum_like(ours, expected) or expected
        else:
            there = own_state(load_encoder(config))
            found = "weights that were changed" if differing(own_state(encoder), there) else expected
        if found != expected:
            raise EncoderMismatchError(
                f"{adapter}: the adapter was trained around encoder "
                f"{theirs.name_or_path!r}{'' if theirs.is_elsewhere else ', changed and stored beside it,'} with "
                f"checksum {expected}; the base model holds {ours.name_or_path!r} with "
                f"{found}. Other weights would change results silently. Build the base "
                f"model with revision={theirs.revision!r}, or open the adapter's repository by an auto class, which "
                "does so by itself"
            )

    @classmethod
    def _from_full_repository(
        cls, name: str | os.PathLike | None, *args: Any, quantization_config: Any = None, **kwargs: Any
    ) -> Any:
        opened = super()._from_full_repository(name, *args, **kwargs)
        _refuse_encoder_on_disk(opened[0] if isinstance(opened, tuple) else opened)
        if quantization_config is None:
            return opened
        model = opened[0] if isinstance(opened, tuple) else opened
        # What trains stays in full precision; only the encoder is opened anew.
        owner = getattr(model, model.base_model_prefix, model)
        if not model.config.part("encoder").is_elsewhere:
            raise ValueError(
                f"quantization_config: {name} stores its encoder among its own weights; only an encoder with a "
                "repository of its own can be quantized when it is opened"
            )
        place = {"device_map": {"": owner.device}, "quantization_config": quantization_config}
        owner.adopt_encoder(load_encoder(model.config, owner.encoder.dtype, **place))
        owner._encoder_is_random = False
        return opened


def _refuse_encoder_on_disk(model: PreTrainedModel) -> None:
    """Refuse a model whose encoder came from another repository and was to stay on disk while it opened.

    transformers looks for what stays on disk among the files of the opened repository alone, and would miss it at the
    first call.

    Raises:
        ValueError: If any of the encoder is on disk.
    """
    owner = getattr(model, model.base_model_prefix, model)
    if owner.encoder is None or not model.config.part("encoder").is_elsewhere:
        return
    path = "encoder." if owner is model else f"{model.base_model_prefix}.encoder."
    for name, place in (getattr(model, "hf_device_map", None) or {}).items():
        if place == "disk" and (not name or path.startswith(f"{name}.") or name.startswith(path)):
            raise ValueError(
                f"device_map leaves '{name}' on disk, but the encoder comes from another repository; open the model "
                "on a device, then accelerate.disk_offload(model, …)"
            )


def _checksum_like(part: PretrainedPart, other: str) -> str | None:
    """The checksum of a part in the form of another one: of its tensors, or of its files as in earlier versions."""
    if part.checksum is None or part.checksum.startswith(CHECKSUM_PREFIX) == other.startswith(CHECKSUM_PREFIX):
        return part.checksum
    source = open_recorded(part)
    return source.checksum if other.startswith(CHECKSUM_PREFIX) else source.file_checksum


def _load_stored_encoder(
    name: str, config: PreTrainedConfig, dtype: torch.dtype | None, hub: dict[str, Any], **loading: Any
) -> PreTrainedModel:
    """Load the encoder that lies beside an adapter.

    Raises:
        ValueError: If the repository holds no encoder, or one that lacks weights.
    """
    own = config.part("encoder").subfolder or FOLDER
    folder = "/".join(part for part in (hub.get("subfolder"), own) if part)
    place, found = adapter_subfolder(name, hub, own)
    try:
        encoder, missing = open_encoder(place, config.encoder_config, dtype, **found, **loading)
    except OSError as error:
        raise ValueError(
            f"{name}: an adapter whose config names no encoder, and the repository holds none in {folder}/; "
            "give encoder_name_or_path=…"
        ) from error
    if missing:
        raise ValueError(f"{name}: the encoder in {folder}/ lacks {', '.join(missing[:8])}")
    return freeze(encoder)
