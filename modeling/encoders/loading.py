"""Load pretrained encoders, without what is not needed to encode tokens, and freeze them."""

import copy
import dataclasses
import os
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.activations import QuickGELUActivation

from hf_any3d.modeling import kernels
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.encoders.model_classes import class_of_config
from hf_any3d.modeling.encoders.registry import (
    EncoderFamily,
    UnsupportedEncoder,
    composite_checkpoints,
    examples_like,
    find_family,
    select_tower,
    towers_of,
)
from hf_any3d.modeling.pretrained_parts.frozen_statistics import FROZEN
from hf_any3d.modeling.pretrained_parts.loading import (
    is_quantized,
    keep_in_full,
    set_quantization,
    unused_weights_expected,
)
from hf_any3d.modeling.pretrained_parts.sources import (
    EncoderMismatchError,
    open_recorded,
    record_source,
    resolve_encoder,
)
from hf_any3d.modeling.pretrained_parts.tensors import own_state, remember_weights, tensors_checksum

ENCODER_DTYPES = ("float32", "bfloat16", "float16")
"""Allowed values of a config's `encoder_dtype`, besides None."""
ENCODER_WEIGHTS = ("pretrained", "random", "shuffled")
"""Weights of a new model's encoder; the last two are controls of studies, see `replace_weights`."""

_Module = TypeVar("_Module", bound=nn.Module)


class FrozenModulesMixin:
    """For models with modules that `freeze` has marked: their norms and drop path stay in eval mode."""

    def train(self, mode: bool = True) -> PreTrainedModel:
        """Set train mode, except for frozen modules."""
        super().train(mode)
        for module in self.modules():
            # Not getattr: adapters forward unknown attributes to the wrapped layer.
            if FROZEN in vars(module):
                module.training = False
        return self


def encoder_settings(
    name_or_path: str | os.PathLike, tower: str | None, revision: str | None, num_layers: int | None = None
) -> dict[str, Any]:
    """Return the config fields that describe an encoder, for arguments of `from_encoder_pretrained`.

    Raises:
        UnsupportedEncoder: Its layers cannot read point tokens, or the checkpoint lacks the tower.
        EncoderUnavailableError: Its files are neither on the hub nor in the cache.
    """
    # Config and weights come from the same commit, even if the branch moves in between.
    source = resolve_encoder(name_or_path, revision)
    config = copy.deepcopy(select_tower(AutoConfig.from_pretrained(source.path), tower))
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ValueError(
                f"num_layers={num_layers}; expected 1 to {config.num_hidden_layers}, the number of {source.name}"
            )
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None) is not None:
            # One entry for each layer, as transformers checks.
            config.layer_types = config.layer_types[:num_layers]
        if hasattr(config, "stage_names"):
            # Its stages as a backbone are its layers, and a stored config must not name the output of a later one.
            config.stage_names = config.stage_names[: num_layers + 1]
            config.set_output_features_output_indices(None, None)
    return {
        "encoder_config": config,
        "parts": {"encoder": record_source(name_or_path, source).to_dict()},
        "encoder_tower": tower,
    }


def load_encoder(config: PreTrainedConfig, dtype: torch.dtype | None = None, **loading: Any) -> PreTrainedModel:
    """Load the encoder that a model's config names; other weights than those recorded raise an `EncoderMismatchError`.

    The dtype is by default that of `encoder_dtype`, or float32; `**loading` are arguments of `from_pretrained`.
    """
    dtype = encoder_dtype(config, dtype)
    part = config.part("encoder")
    if not part.is_elsewhere:
        raise ValueError(
            "the config names no encoder: it is stored with the model; load the model with from_pretrained(…), or set "
            "encoder_name_or_path of the config to the encoder's name or directory"
        )
    mismatch = None
    with stored_settings(config.name_or_path or None):
        try:
            source = open_recorded(part, config.name_or_path)
        except EncoderMismatchError as error:
            if part.revision is not None:
                raise
            # The checksum of an encoder that was stored with a model is of its own tensors, without other towers.
            mismatch = error
            source = open_recorded(dataclasses.replace(part, checksum=None), config.name_or_path)
        try:
            encoder, missing = open_encoder(source.path, config.encoder_config, dtype, **loading)
        except (RuntimeError, ValueError) as error:
            # In transformers' words for any model: its error proposes to draw the weights anew.
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise UnsupportedEncoder(
                f"encoder {source.name!r} is not supported: its weights have other shapes than its config says; "
                f"{examples_like(config.encoder_config)}"
            ) from error
    if mismatch is not None and (is_quantized(encoder) or tensors_checksum(own_state(encoder)) != part.checksum):
        raise mismatch
    if missing:
        raise ValueError(f"encoder {source.name!r} lacks weights that its config requires: {', '.join(missing[:8])}")
    remember_weights(encoder)
    return freeze(encoder)


def encoder_dtype(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> torch.dtype | None:
    """Return the dtype in which a model's config keeps the frozen encoder, or `dtype` if it leaves the choice."""
    name = getattr(config, "encoder_dtype", None)
    if name is None:
        return dtype
    if name not in ENCODER_DTYPES:  # set after the config was checked
        raise ValueError(f"encoder_dtype={name!r}; expected one of None, {', '.join(map(repr, ENCODER_DTYPES))}")
    own = getattr(torch, name)
    if dtype not in (None, own):
        raise ValueError(f"dtype={dtype}; expected that of the config, encoder_dtype={name!r}")
    return own


def convert_encoder(encoder: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the weights of an encoder as loading it in this dtype does; quantized ones stay as they are."""
    if is_quantized(encoder):
        return
    # Weights that transformers keeps in full precision, such as some of T5 in float16.
    kept = () if find_family(encoder.config).one_precision else tuple(encoder._get_dtype_plan(dtype))
    for name, parameter in encoder.named_parameters():
        if parameter.is_floating_point() and not set(kept).intersection(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    encoder.config.dtype = dtype


_HUB = {"subfolder", "revision", "token", "cache_dir", "local_files_only"}


def open_encoder(
    name_or_path: str | os.PathLike, config: PreTrainedConfig, dtype: torch.dtype | None = None, **loading: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load what encoding tokens needs of a checkpoint; also return the names of weights that it lacks."""
    family = find_family(config)
    whole = AutoConfig.from_pretrained(name_or_path, **{key: loading[key] for key in _HUB.intersection(loading)})
    is_tower = any(type(inner) is type(config) for inner in towers_of(whole).values())
    if is_tower and whole.model_type not in composite_checkpoints():
        return _open_tower(name_or_path, whole, config, dtype or torch.float32, **loading)
    # Weights unused: heads, other towers and further layers.
    with stored_settings(name_or_path), unused_weights_expected():
        build = _class_of(family, config)
        encoder, report = build.from_pretrained(
            name_or_path,
            config=config,
            key_mapping=dict(family.key_mapping) or None,
            dtype=dtype or torch.float32,
            attn_implementation=config._attn_implementation,
            output_loading_info=True,
            **keep_in_full(loading, inside=("encoder",), build=lambda: _unloaded(build, config)),
        )
    set_quantization(encoder, stored_quantized=getattr(config, "quantization_config", None) is not None)
    # Converted after loading, as transformers keeps some of them in float32 by a list of its own.
    if family.one_precision and not is_quantized(encoder):
        for parameter in encoder.parameters():
            parameter.data = parameter.data.to(dtype or torch.float32)
    unneeded = ("pooler.", *(f"{path}." for path in family.unused))
    paths = (family.input_norm, family.final_norm)
    norms = tuple(f"{path(config) if callable(path) else path}." for path in paths if path is not None)
    # BEiT keeps the norm after its last layer in its pooler.
    missing = sorted(key for key in report["missing_keys"] if key.startswith(norms) or not key.startswith(unneeded))
    return _without_unused(encoder, family), missing


def _open_tower(
    name_or_path: str | os.PathLike,
    whole: PreTrainedConfig,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    **loading: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """Open a checkpoint of several towers as a whole and keep one: its files may name the weights otherwise."""
    with stored_settings(name_or_path), unused_weights_expected():
        whole = _with_tower(whole, config)
        model, report = AutoModel.from_pretrained(
            name_or_path,
            config=whole,
            dtype=dtype,
            attn_implementation=config._attn_implementation,
            output_loading_info=True,
            **keep_in_full(loading, inside=("encoder",), build=lambda: _unloaded(AutoModel, whole)),
        )
    paths = [
        path
        for path, module in model.named_modules()
        if path and isinstance(module, PreTrainedModel) and type(module.config) is type(config)
    ]
    if not paths:
        raise UnsupportedEncoder(f"a {type(model).__name__} has no model for its {type(config).__name__}")
    encoder = model.get_submodule(paths[0])
    set_quantization(encoder, stored_quantized=getattr(whole, "quantization_config", None) is not None)
    prefix = f"{paths[0]}."
    missing = sorted(key.removeprefix(prefix) for key in report["missing_keys"] if key.startswith(prefix))
    return _without_unused(encoder, find_family(config)), [key for key in missing if not key.startswith("pooler.")]


def _with_tower(whole: PreTrainedConfig, config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a composite checkpoint with another config of one tower, which may have fewer layers."""
    whole = copy.deepcopy(whole)
    for holder in (whole, getattr(whole, "thinker_config", None)):
        for name, value in list(vars(holder).items()) if holder is not None else ():
            if type(value) is type(config):
                setattr(holder, name, copy.deepcopy(config))
    return whole


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Build an encoder with random weights, without the parts that are not needed to encode tokens."""
    family = find_family(config)
    return _without_unused(_unloaded(_class_of(family, config), config), family)


def _unloaded(build: Any, config: PreTrainedConfig) -> PreTrainedModel:
    return build.from_config(config) if build is AutoModel else build._from_config(config)


@torch.no_grad()
def replace_weights(encoder: PreTrainedModel, weights: str) -> PreTrainedModel:
    """Return an encoder with "random" weights or, "shuffled", values of each tensor permuted in place, as a control.

    Other random numbers do not change, so that everything around it starts from the same weights.
    """
    # All numbers are drawn on the CPU, so the states of other devices need no copy.
    with torch.random.fork_rng(devices=[]):
        # Weights of an equal seed elsewhere in the model would be the same numbers.
        torch.manual_seed(torch.initial_seed() + 1000)
        if weights == "random":
            fresh = build_encoder(encoder.config)
            return freeze(fresh.to(encoder.device, encoder.dtype))
        for parameter in encoder.parameters():
            order = torch.randperm(parameter.numel())
            parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return encoder


def freeze(encoder: _Module) -> _Module:
    """Freeze an encoder, and mark its own modules to tell them from adapters that are added later."""
    for module in encoder.modules():
        for name, child in module.named_children():
            if type(child) is QuickGELUActivation:  # without weights, and values stay the same
                setattr(module, name, FusedQuickGELU())
    for module in encoder.modules():
        # Before any adapter is added, so that everything here is the encoder's own.
        setattr(module, FROZEN, True)
    encoder.requires_grad_(False)
    return encoder.eval()


class FusedQuickGELU(nn.Module):
    """`x * sigmoid(1.702 * x)`, saving only its input for the backward pass."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the activation to a tensor of any shape."""
        return kernels.quick_gelu(hidden_states)


def _class_of(family: EncoderFamily, config: PreTrainedConfig) -> type:
    return class_of_config(config) if family.model_class is None else getattr(transformers, family.model_class)


def _without_unused(encoder: PreTrainedModel, family: EncoderFamily) -> PreTrainedModel:
    for path in family.unused:
        # Removed from memory, and from what is saved.
        parent, _, name = path.rpartition(".")
        delattr(encoder.get_submodule(parent), name)
    unneeded = tuple(f"{path}." for path in family.unused)
    if unneeded:
        # Nor can their weights be tied to others any more.
        for ties in ("_tied_weights_keys", "all_tied_weights_keys"):
            pairs = getattr(encoder, ties, None) or {}
            setattr(encoder, ties, {one: other for one, other in pairs.items() if not one.startswith(unneeded)})
    return encoder
