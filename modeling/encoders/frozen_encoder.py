"""A pretrained encoder inside another model: loaded from its own repository, frozen, never stored again."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_any3d.modeling.encoders.quick_gelu import fuse_quick_gelu
from hf_any3d.modeling.encoders.registry import EncoderFamily, find_family, select_tower
from hf_any3d.modeling.pretrained_parts import (
    AdapterLoadingMixin,
    is_quantized,
    own_state,
    remember_weights,
    set_quantization,
)
from hf_any3d.modeling.pretrained_parts.sources import open_recorded, record_source, resolve_encoder


@dataclass(frozen=True)
class LayerStack:
    """Where a model's pretrained layers are and what an adapter has to know of them.

    Args:
        layers: The layers; some may stand in adapters already.
        path: Their name within the module that owns them.
        branch: Path from a layer to the module whose output is the feed-forward branch.
        hidden_size: Channels of a token.
        views: Kinds of cells that the layers' tokens are told of; 0 where adapters never hear where tokens are.
        pretrained: Names of the owner's children that no adaptation trains in full.
        attention_axis: What attention runs over, "tokens" of a cloud or the clouds of a "batch".
    """

    layers: nn.ModuleList
    path: str
    branch: str
    hidden_size: int
    views: int
    pretrained: tuple[str, ...]
    attention_axis: str = "tokens"


# Marks the modules that are the encoder's own.
FROZEN = "_belongs_to_frozen_encoder"


def encoder_settings(
    name_or_path: str | os.PathLike, tower: str | None, revision: str | None, num_layers: int | None = None
) -> dict[str, Any]:
    """Everything a composite config records of its encoder: config, tower, and as a part name, commit and checksum.

    Args:
        name_or_path: Hub name or local directory of a transformers checkpoint.
        tower: "text", "vision" or "audio"; required where a checkpoint holds several encoders.
        revision: Branch, tag or commit; what is recorded is the commit.
        num_layers: Use the first layers only; None for all.

    Raises:
        UnsupportedEncoder: If the model_type or tower is not supported.
        ValueError: If `num_layers` is not between 1 and the encoder's number of layers.
    """
    source = resolve_encoder(name_or_path, revision)
    config = copy.deepcopy(select_tower(AutoConfig.from_pretrained(source.path), tower))
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ValueError(
                f"num_layers={num_layers}; expected 1 to {config.num_hidden_layers}, what {source.name} has"
            )
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:num_layers]
    return {
        "encoder_config": config,
        "parts": {"encoder": record_source(name_or_path, source).to_dict()},
        "encoder_tower": tower,
    }


def load_encoder(config: PreTrainedConfig, dtype: torch.dtype | None = None, **loading: Any) -> PreTrainedModel:
    """Load the encoder that a composite config names, after checking that its weights are the recorded ones.

    Args:
        config: The composite config.
        dtype: Precision, float32 by default.
        **loading: `device_map`, `quantization_config` and the like of `from_pretrained`.

    Raises:
        EncoderMismatchError: If the weights found have another checksum than the config records.
        OSError: If they cannot be found.
        ValueError: If the config names no encoder, or the weights are not complete.
    """
    part = config.part("encoder")
    if not part.is_elsewhere:
        raise ValueError(
            "the config names no encoder: it is stored with the model; open the model by from_pretrained(…)"
        )
    source = open_recorded(part, config.name_or_path)
    encoder, missing = open_encoder(source.path, config.encoder_config, dtype, **loading)
    if missing:
        raise ValueError(f"encoder {source.name!r} lacks weights that its config asks for: {', '.join(missing[:8])}")
    remember_weights(encoder)
    return freeze(encoder)


def open_encoder(
    name_or_path: str | os.PathLike, config: PreTrainedConfig, dtype: torch.dtype | None = None, **loading: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Open a checkpoint as the class that reading tokens needs, without parts that it never needs.

    Args:
        name_or_path: Directory or repository.
        config: Config of the encoder, of one tower for composite checkpoints.
        dtype: Precision, float32 by default.
        **loading: `revision`, `subfolder`, `token`, `device_map`, `quantization_config` and the like.

    Returns:
        The encoder, and the names of needed weights that the checkpoint lacks.

    Raises:
        UnsupportedEncoder: If the encoder is not supported.
    """
    family = find_family(config)
    verbosity = logging.get_verbosity()
    # Heads, other towers and unused layers of the checkpoint are left out on purpose: no report of unexpected keys.
    logging.set_verbosity_error()
    try:
        encoder, report = _class_of(family).from_pretrained(
            name_or_path,
            config=config,
            key_mapping=dict(family.key_mapping) or None,
            dtype=dtype or torch.float32,
            attn_implementation=config._attn_implementation,
            output_loading_info=True,
            **loading,
        )
    finally:
        logging.set_verbosity(verbosity)
    set_quantization(encoder, stored_quantized=getattr(config, "quantization_config", None) is not None)
    if family.one_precision and not is_quantized(encoder):
        for parameter in encoder.parameters():
            parameter.data = parameter.data.to(dtype or torch.float32)
    unneeded = ("pooler.", *(f"{path}." for path in family.unused))
    paths = (family.input_norm, family.final_norm)
    norms = tuple(f"{path(config) if callable(path) else path}." for path in paths if path is not None)
    # The norm that BEiT keeps in its pooler is the one behind its last layer.
    missing = sorted(key for key in report["missing_keys"] if key.startswith(norms) or not key.startswith(unneeded))
    return _without_unused(encoder, family), missing


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with random weights, without the parts that reading tokens never needs.

    Raises:
        UnsupportedEncoder: If the encoder is not supported.
    """
    family = find_family(config)
    build = _class_of(family)
    encoder = build.from_config(config) if build is AutoModel else build._from_config(config)
    return _without_unused(encoder, family)


def _class_of(family: EncoderFamily) -> type:
    return AutoModel if family.model_class is None else getattr(transformers, family.model_class)


def _without_unused(encoder: PreTrainedModel, family: EncoderFamily) -> PreTrainedModel:
    for path in family.unused:
        parent, _, name = path.rpartition(".")
        delattr(encoder.get_submodule(parent), name)
    return encoder


def freeze(encoder: PreTrainedModel) -> PreTrainedModel:
    """Take all gradients from an encoder and remember which modules are its own, apart from adapters added later."""
    fuse_quick_gelu(encoder)
    for module in encoder.modules():
        setattr(module, FROZEN, True)
    encoder.requires_grad_(False)
    return encoder.eval()


def frozen_encoder_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """The frozen encoder of a model or of the base model in it; None while they are being built."""
    return getattr(getattr(model, model.base_model_prefix, model), "encoder", None)


class FrozenEncoderMixin(AdapterLoadingMixin):
    """For `PreTrainedModel` classes whose base model owns a frozen `encoder`, the part "encoder" of its config.

    The encoder's own modules stay in eval mode (no dropout, no layer drop) whatever `train()` says, while adapters
    inside it follow `train()`. Its weights are left out of checkpoints as long as they are those that the config
    names, and are loaded from there, checked against the recorded checksum, by `from_pretrained`.
    """

    _part_paths = {"encoder": "encoder"}
    _settings_without_effect_on_adapters = ("encoder_", "parts")
    _keys_to_ignore_on_load_missing = [r"(^|\.)encoder\."]

    def adopt_encoder(self, encoder: PreTrainedModel | None) -> None:
        """Put the encoder in place. Called in the `__init__` of the model that owns it, before `post_init`.

        Args:
            encoder: A loaded encoder; None builds one with random weights, to be filled by `from_pretrained`.
        """
        self._encoder_is_random = encoder is None
        self._encoder_trains = False
        if encoder is None:
            encoder = build_encoder(self.config.encoder_config)
        if encoder.config._attn_implementation is None:
            # A config that becomes part of another one forgets the choice that its model was built with.
            encoder.config._attn_implementation = self.config._attn_implementation
        self.config.encoder_config = encoder.config
        self.encoder = freeze(encoder)
        if self.config.part("encoder").is_elsewhere:
            self._keys_to_ignore_on_save = {f"encoder.{key}" for key in encoder.state_dict()}

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """The encoder's weights in full precision; see `PretrainedPartsMixin`."""
        return own_state(load_encoder(self.config))

    @property
    def layer_stack(self) -> LayerStack | None:
        """The encoder's layers; None for a model that owns none, such as one with a head around the one that does."""
        encoder = self._modules.get("encoder")
        if encoder is None:
            return None
        family = find_family(self.config.encoder_config)
        return LayerStack(
            layers=family.layers_of(encoder),
            path=f"encoder.{family.layers}",
            branch=family.branch,
            hidden_size=self.config.encoder_config.hidden_size,
            views=getattr(self.config, "num_views", 0),
            pretrained=("encoder",),
            attention_axis=getattr(self.config, "attention_axis", "tokens"),
        )

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Whether the encoder is; PEFT asks the whole model when it chooses its layers."""
        return getattr(frozen_encoder_of(self), "is_loaded_in_8bit", False)

    @property
    def is_loaded_in_4bit(self) -> bool:
        """Whether the encoder is; see above."""
        return getattr(frozen_encoder_of(self), "is_loaded_in_4bit", False)

    def warn_if_encoder_is_random(self) -> None:
        """Warn once if the config names an encoder whose weights were never loaded; for the owner's `forward`."""
        if self._encoder_is_random and self.config.encoder_name_or_path is not None:
            warnings.warn(
                f"the encoder has random weights, not those of {self.config.encoder_name_or_path}: build the model "
                "with from_pretrained(…) or from_encoder_pretrained(config=…), not from the config alone",
                UserWarning,
                stacklevel=3,
            )
            self._encoder_is_random = False

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode of everything but the encoder's own modules, which stay in eval mode unless they train."""
        super().train(mode)
        owner = getattr(self, self.base_model_prefix, self)
        encoder = None if getattr(owner, "_encoder_trains", False) else frozen_encoder_of(self)
        for module in encoder.modules() if encoder is not None else ():
            # Not getattr: adapters around a layer look for unknown attributes in the layer.
            if FROZEN in vars(module):
                module.training = False
        return self

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Any, *args: Any, **kwargs: Any) -> None:
        # The one moment at which a model in the making hears which weights its files lack; what is offloaded to a disk
        # is not among them, though it stays without memory.
        self._keys_without_file = set(missing_keys)
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        owner = getattr(self, self.base_model_prefix, self)
        encoder, owner._encoder_is_random = owner.encoder, False
        if encoder is None:  # a model that does without one
            super()._initialize_missing_keys(is_quantized)
            return
        if (pending := self._missing_of_encoder(encoder)) and not self.config.part("encoder").is_elsewhere:
            count = sum(1 for _ in encoder.state_dict())
            what = "encoder weights" if len(pending) >= count else f"encoder weights {', '.join(pending[:8])}"
            raise ValueError(
                f"{self.config.name_or_path}: holds no {what}, and its config does not say where to find them; "
                "give encoder_name_or_path=…"
            )
        if pending:
            source = load_encoder(self.config, dtype=encoder.dtype)
            encoder.load_state_dict(source.state_dict(), assign=True)
            # Buffers outside the state dict (rotary frequencies) are uninitialised memory at this point.
            for buffer, loaded in zip(encoder.buffers(), source.buffers(), strict=True):
                buffer.data = loaded.data
            for module in encoder.modules():
                module._is_hf_initialized = True
            for tensor in (*encoder.parameters(), *encoder.buffers()):
                tensor._is_hf_initialized = True
            remember_weights(encoder)
        # Loading makes parameters anew, which would train.
        freeze(encoder)
        super()._initialize_missing_keys(is_quantized)

    def _missing_of_encoder(self, encoder: PreTrainedModel) -> list[str]:
        """Names of the encoder's weights that no file of the model holds; sorted."""
        if (without_file := vars(self).pop("_keys_without_file", None)) is not None:
            prefix = next(f"{name}." for name, module in self.named_modules() if module is encoder)
            without_file -= set(self.all_tied_weights_keys)
            return sorted(key.removeprefix(prefix) for key in without_file if key.startswith(prefix))
        # A model inside the one that is being loaded, which alone hears of its files.
        return sorted(
            name for name, each in encoder.named_parameters() if not getattr(each, "_is_hf_initialized", False)
        )


def unfreeze(model: PreTrainedModel, probe: Callable[[], torch.Tensor]) -> list[str]:
    """Let the encoder's parameters train that `probe` depends on, and have them stored with the model.

    A pretrained checkpoint holds more than a model reads of it, such as the embeddings of words. To count that as
    trained would be wrong, and training in several processes refuses parameters that never get a gradient.

    Args:
        model: A model with a frozen encoder, with or without a head.
        probe: Runs the model on any input and gives its output.

    Returns:
        Names of those parameters in the encoder.

    Raises:
        ValueError: If there are adapters in the encoder, or its weights are quantized.
    """
    owner = getattr(model, model.base_model_prefix, model)
    encoder = owner.encoder
    if strangers := sorted({type(m).__name__ for m in encoder.modules() if "base_layer" in m._modules}):
        raise ValueError(f"the encoder holds adapters ({', '.join(strangers)}); merge or unload them first")
    named = dict(encoder.named_parameters())
    if quantized := [name for name, parameter in named.items() if not parameter.is_floating_point()]:
        raise ValueError(f"the encoder's {quantized[0]} is {named[quantized[0]].dtype}; expected floating point")
    mode = model.training
    model.eval()
    encoder.requires_grad_(True)
    with torch.enable_grad():
        reached = torch.autograd.grad(probe().sum(), list(named.values()), allow_unused=True)
    trained = [name for name, gradient in zip(named, reached, strict=True) if gradient is not None]
    for name in named.keys() - set(trained):
        named[name].requires_grad_(False)
    owner._encoder_trains = True
    for module in model.modules():
        if isinstance(module, FrozenEncoderMixin):
            module.config.change_part("encoder", stored=True, checksum=None, subfolder=None)
    model.train(mode)
    return trained
