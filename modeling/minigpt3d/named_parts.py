"""Save models without pretrained parts that have their own repositories, and load the parts from there."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Blip2Config,
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from hf_any3d.modeling.minigpt3d.lora import names_in
from hf_any3d.modeling.minigpt3d.stages import trained_names
from hf_any3d.modeling.pretrained_parts import (
    HUB_ARGUMENTS,
    PretrainedPart,
    PretrainedPartsMixin,
    is_quantized,
    own_state,
    remember_weights,
    set_quantization,
    single_device,
)
from hf_any3d.modeling.pretrained_parts.loading_checks import apply_settings, dtype_named
from hf_any3d.modeling.pretrained_parts.sources import open_recorded, record_source
from hf_any3d.modeling.pretrained_parts.tensors import OwnTensor

if TYPE_CHECKING:
    from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import MiniGPT3DForConditionalGeneration


class QueriesAndQFormer(Blip2PreTrainedModel):
    """The query tokens and Q-Former of a BLIP-2 model; other weights of its repository are ignored.

    It can also be saved as a small repository of its own.
    """

    config_class = Blip2Config
    _keys_to_ignore_on_load_unexpected = [r"^(vision_model|language_model|language_projection)\."]

    def __init__(self, config: Blip2Config):
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()


PART_CLASSES = {"point_encoder": AutoModel, "qformer": QueriesAndQFormer, "language_model": AutoModelForCausalLM}
"""Class that loads each pretrained part."""


def open_part(
    part: str,
    recorded: PretrainedPart,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    model: str | os.PathLike | None = None,
    **loading: Any,
) -> tuple[PreTrainedModel, PretrainedPart]:
    """Load a pretrained part from its repository or directory.

    Args:
        part: One of `PART_CLASSES`.
        recorded: Its repository or directory, branch, tag or commit, and expected checksum; without a checksum, any
            weights are accepted.
        config: Its config; by default the stored one.
        dtype: Its dtype; by default the stored one.
        model: Directory of the model that the part belongs to, the base of relative paths.
        **loading: `attn_implementation`, `quantization_config` and the like of `from_pretrained`.

    Returns:
        The part, and its record with name, commit and checksum.

    Raises:
        EncoderMismatchError: If the weights differ from those recorded.
        ValueError: If the part lacks weights that its config requires.
        OSError: If it cannot be loaded.
    """
    source = open_recorded(recorded, model)
    if config is not None:
        loading["config"] = config
    if dtype is not None:
        loading["dtype"] = dtype
    opened, info = PART_CLASSES[part].from_pretrained(source.path, output_loading_info=True, **loading)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{part} {source.name!r} lacks weights that its config requires: {', '.join(missing[:8])}")
    set_quantization(opened)
    return opened, record_source(recorded.name_or_path, source)


@torch.no_grad()
def adopt_qformer(model: MiniGPT3DForConditionalGeneration, source: QueriesAndQFormer) -> None:
    """Copy a BLIP-2 model's Q-Former into a model, and its query tokens into every query set."""
    qformer, given = model.bridge.qformer, dict(source.qformer.named_parameters())
    for name, ours in names_in(qformer, given).items():
        qformer.get_parameter(ours).copy_(given[name])
    for queries in model.bridge.experts.queries:
        queries.copy_(source.query_tokens[0])


def cast_around(model: MiniGPT3DForConditionalGeneration, dtype: torch.dtype) -> MiniGPT3DForConditionalGeneration:
    """Cast a model to a dtype, except for a quantized language model."""
    if not is_quantized(model.language_model):
        return model.to(dtype)
    model.point_encoder.to(dtype)
    model.bridge.to(dtype)
    return model


if TYPE_CHECKING:
    from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig
    from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import MiniGPT3DForConditionalGeneration


def held_names(model: MiniGPT3DForConditionalGeneration) -> set[str]:
    """Return the names of tensors that are not saved because a pretrained part's repository holds them.

    These are the tensors of parts that are kept elsewhere, without LoRA and without what the stages up to
    `config.stage` train.
    """
    return model.names_stored_elsewhere()


class NamedPartsMixin(PretrainedPartsMixin):
    """Save only trained weights, and load pretrained parts from the repositories that the config names.

    47.8 million of MiniGPT-3D's 2,954 million parameters are trained. The rest is recorded by name, commit and
    checksum in `config.parts`; without that record, the full model is saved and loaded.
    """

    _part_paths = {
        "point_encoder": "point_encoder",
        "qformer": "bridge.qformer",
        "language_model": "language_model",
    }

    def part_tensors(self, name: str) -> list[OwnTensor]:
        """Return a part's tensors except those that the training stages change; see `PretrainedPartsMixin`."""
        trained, path = set(trained_names(self)), self._part_paths[name]
        return [own for own in super().part_tensors(name) if f"{path}.{own.path}" not in trained]

    def remember_parts(self) -> None:
        """Remember the weights of the parts that are kept elsewhere, right after loading."""
        for name, path in self._part_paths.items():
            if self.config.part(name).is_elsewhere:
                remember_weights(self.get_submodule(path))

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """Load the recorded weights of a part again; see `PretrainedPartsMixin`."""
        configs = {"point_encoder": self.config.point_config, "language_model": self.config.text_config}
        opened, _ = open_part(name, self.config.part(name), config=copy.deepcopy(configs.get(name)))
        return own_state(opened.qformer if name == "qformer" else opened)

    def store_parts(self) -> None:
        """Store all parts with the model from now on.

        Raises:
            ValueError: If the language model was loaded in 4 or 8 bits, not with its full weights.
        """
        if self.config.parts and is_quantized(self.language_model):
            raise ValueError("the language model was loaded quantized; expected full weights to store")
        self.config.parts = None
        self._keys_to_ignore_on_save = set()

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """Load a model with its pretrained parts from their repositories.

        `quantization_config` then applies to the language model, and the model is on one device.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        config = kwargs.get("config")
        if name is not None and not isinstance(config, cls.config_class):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub)
        if config is None or not any(config.part(part).is_elsewhere for part in cls._part_paths):
            return super()._from_full_repository(name, *args, **kwargs)
        config = copy.deepcopy(config)
        others = {key: value for key, value in kwargs.items() if key not in {*HUB_ARGUMENTS, "config"}}
        return cls._from_parts(os.fspath(name), config, hub, **others)

    @classmethod
    def _from_parts(
        cls,
        name: str,
        config: MiniGPT3DConfig,
        hub: dict[str, Any],
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Any:
        apply_settings(cls, config, overrides, "a model whose parts are kept elsewhere")
        dtype = dtype_named(dtype or torch_dtype) or config.dtype or torch.float32
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        model = cls._build_around_parts(name, config, dtype, attn_implementation, device_map, quantization_config)
        _load_stored(model, name, read_stored(name, hub))
        model.name_or_path = config.name_or_path = name
        if model.can_generate():
            try:
                model.generation_config = GenerationConfig.from_pretrained(name, **hub)
            except OSError:
                pass  # keep the default derived from the config
        if device_map is not None:
            model.to(single_device(device_map))
        info = {key: set() for key in ("missing_keys", "unexpected_keys", "mismatched_keys")} | {"error_msgs": []}
        return (model.eval(), info) if output_loading_info else model.eval()

    @classmethod
    def _build_around_parts(
        cls,
        name: str,
        config: MiniGPT3DConfig,
        dtype: torch.dtype,
        attention: str | None,
        device_map: Any,
        quantization: Any,
    ) -> MiniGPT3DForConditionalGeneration:
        if quantization is not None and not config.part("language_model").is_elsewhere:
            raise ValueError(
                "quantization_config: the language model is stored with the model; expected one kept elsewhere"
            )
        configs = {"point_encoder": config.point_config, "qformer": None, "language_model": config.text_config}
        opened = {}
        for part in filter(lambda part: config.part(part).is_elsewhere, cls._part_paths):
            loading = {} if attention is None else {"attn_implementation": attention}
            if part == "language_model" and quantization is not None:
                loading |= {"quantization_config": quantization, "device_map": device_map}
            opened[part], _ = open_part(
                part, config.part(part), config=configs[part], dtype=dtype, model=name, **loading
            )
        implementations = {part: model.config._attn_implementation for part, model in opened.items()}
        model = cls(config, opened.get("point_encoder"), None, opened.get("language_model"))
        for part, implementation in implementations.items():
            # Nesting a config in another one resets the attention implementation that its model was built with.
            opened[part].config._attn_implementation = implementation
        if "qformer" in opened:
            adopt_qformer(model, opened["qformer"])
        cast_around(model, dtype)
        model.remember_parts()
        return model


def read_stored(name: str, hub: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Load the tensors in a directory or repository to the CPU.

    Raises:
        OSError: If there are none.
    """
    file = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if file is not None:
        return load_state_dict(file)
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **hub)
    shards, _ = get_checkpoint_shard_files(name, index, **hub)
    return {key: tensor for shard in shards for key, tensor in load_state_dict(shard).items()}


def _load_stored(model: MiniGPT3DForConditionalGeneration, name: str, stored: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    tied = set(model.all_tied_weights_keys)
    wrong = [f"{key} is missing" for key in own.keys() - stored.keys() - held_names(model) - tied]
    wrong += [f"{key} is not the model's" for key in stored.keys() - own.keys()]
    wrong += [
        f"{key} has shape {tuple(tensor.shape)}, expected {tuple(own[key].shape)}"
        for key, tensor in stored.items()
        if key in own and own[key].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{name}: {'; '.join(sorted(wrong)[:8])}" + f" and {len(wrong) - 8} more" * (len(wrong) > 8))
    model.load_state_dict(stored, strict=False)
    model.tie_weights()
