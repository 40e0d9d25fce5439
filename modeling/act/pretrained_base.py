"""Where the weights come from that adapters on ACT's point transformer stand on, and proof of which they are."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file, logging

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.encoders.sources import EncoderMismatchError, commit_in_cache
from hf_any3d.modeling.pretrained_parts import (
    AdapterLoadingMixin,
    PretrainedPart,
    absolute_name,
    adapter_subfolder,
    own_state,
    tensors_checksum,
)
from hf_any3d.modeling.pretrained_parts.mixin import refuse_merged_adapters
from hf_any3d.modeling.pretrained_parts.tensors import differing

FOLDER = "base"


class PretrainedBaseMixin(AdapterLoadingMixin):
    """For models around a pretrained point transformer whose repositories may hold just an adapter and a config.

    The config beside the adapter names the repository or directory that the transformer was loaded from, its revision
    and a checksum of its weights. A transformer that is found nowhere as it is, because it was trained on or never
    stored, is kept in the folder `base` beside the adapter.
    """

    _settings_without_effect_on_adapters = ("parts", "autoencoder_config")
    _has_single_dtype = True

    @classmethod
    def build_for_adapter(
        cls,
        name: str,
        config: ActConfig,
        hub: dict[str, Any],
        dtype: Any = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
    ) -> PreTrainedModel:
        """Build the model around its pretrained transformer, in full precision; see `AdapterLoadingMixin`."""
        if quantization_config is not None:
            raise ValueError("quantization_config: only frozen encoders of other modalities can be quantized")
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        recorded = config.part("base")
        if not recorded.is_elsewhere:
            source, found = adapter_subfolder(name, hub, recorded.subfolder or FOLDER)
            where = f"{name}: {recorded.subfolder or FOLDER}/"
        else:
            where = source = recorded.name_or_path
            found = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
            if recorded.revision is not None:
                found["revision"] = recorded.revision
        base = open_base(source, config, **found)
        if recorded.checksum is not None and (checksum := weights_checksum_of(base)) != recorded.checksum:
            raise EncoderMismatchError(
                f"{where}: the pretrained weights have checksum {checksum}; expected {recorded.checksum}, those "
                f"that the adapter in {name} was trained around"
            )
        model = cls(config)
        if model.base_model is model:
            return base
        setattr(model, model.base_model_prefix, base)
        return model

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> PreTrainedModel:
        opened = super()._from_full_repository(name, *args, **kwargs)
        if name is not None and not kwargs.get("subfolder"):
            model = opened[0] if isinstance(opened, tuple) else opened
            model._opened_from = (
                absolute_name(name),
                commit_in_cache(name, kwargs.get("revision"), kwargs.get("cache_dir")),
            )
        return opened

    def save_with_adapter(self, directory: str | os.PathLike) -> None:
        """Write the config with the home of the pretrained weights, or these where they have none."""
        config = copy.deepcopy(self.config)
        # What it was pretrained with is over.
        config.autoencoder_config = None
        home = self._home_of_base()
        if home is None:
            base = self.base_model
            state = own_state(base)
            config.set_part("base", None)
            _save_state(base, copy.deepcopy(config), state, Path(directory) / FOLDER)
            home = PretrainedPart(checksum=tensors_checksum(state), subfolder=FOLDER, stored=True)
        config.set_part("base", home)
        config.save_pretrained(directory)

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Compare checksums of the weights; see `AdapterLoadingMixin`.

        In half precision there is nothing to compare.
        """
        part = type(self.config).from_dict(recorded).part("base")
        expected = part.checksum
        if expected is None or self.base_model.dtype != torch.float32:
            return
        checksum = weights_checksum_of(self.base_model)
        if checksum != expected:
            home = part.name_or_path
            raise EncoderMismatchError(
                f"{adapter}: the adapter was trained around "
                f"{f'the weights of {home!r}' if home else f'those in {FOLDER}/'}, with checksum {expected}; the base "
                f"model's weights have {checksum}. Other weights would change results silently. Build the base model "
                f"from there, with revision={part.revision!r}, or open the adapter's repository by an "
                "auto class, which does so by itself"
            )

    def _home_of_base(self) -> PretrainedPart | None:
        """The place whose weights this model's transformer still has; None where there is no such place.

        Raises:
            ValueError: If an adapter is merged into the weights for the time being.
        """
        base, config = self.base_model, self.config
        refuse_merged_adapters(base)
        recorded = config.part("base")
        opened = [vars(model).get("_opened_from", (None, None)) for model in (self, base)]
        for name, revision in ((recorded.name_or_path, recorded.revision), *opened):
            if name is None:
                continue
            hub = {} if revision is None else {"revision": revision}
            try:
                there = own_state(open_base(name, config, **hub))
            except (OSError, ValueError, RuntimeError):
                continue  # gone, or another model
            ours = own_state(base)
            if ours.keys() == there.keys() and not differing(ours, there):
                return PretrainedPart(name, revision, tensors_checksum(there))
        return None


def open_base(name: str | os.PathLike, config: ActConfig, **hub: Any) -> PreTrainedModel:
    """Load a point transformer out of any checkpoint that holds one, in full precision.

    Args:
        name: Directory or hub repository.
        config: What the transformer has to be.
        **hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        ValueError: If the checkpoint lacks weights of it, or holds an adapter too.
    """
    from hf_any3d.modeling.act.modeling_act import ActModel

    if find_adapter_config_file(name, **{key: value for key, value in hub.items() if value is not None}):
        raise ValueError(
            f"{name}: holds adapter_config.json, an adapter, beside the pretrained weights; expected weights alone"
        )
    config = copy.deepcopy(config)
    config.autoencoder_config = None
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Heads, a decoder or a class token of the checkpoint may be left out on purpose.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        base, report = ActModel.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, **hub
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    lacking = sorted((*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])))
    if lacking:
        raise ValueError(f"{name}: lacks weights of the point transformer: {', '.join(lacking[:8])}")
    return base


def weights_checksum_of(base: PreTrainedModel) -> str:
    """The checksum of a point transformer without its adapters, whatever file it came in."""
    return tensors_checksum(own_state(base))


def _save_state(base: PreTrainedModel, config: ActConfig, state: dict[str, torch.Tensor], folder: Path) -> None:
    bare = type(base)(config)
    bare.load_state_dict(state)
    # As a part of a model: without a card of its own.
    PreTrainedModel.save_pretrained(bare, folder)
