"""Source and checksum of the pretrained weights under adapters on ACT's point transformer."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file, logging

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.pretrained_parts import (
    AdapterLoadingMixin,
    PretrainedPart,
    absolute_name,
    adapter_subfolder,
    own_state,
    tensors_checksum,
)
from hf_any3d.modeling.pretrained_parts.mixin import refuse_merged_adapters
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, commit_in_cache
from hf_any3d.modeling.pretrained_parts.tensors import differing

FOLDER = "base"


class PretrainedBaseMixin(AdapterLoadingMixin):
    """For models around a pretrained point transformer whose repositories may hold only an adapter and a config.

    The config stored with the adapter names the repository or directory that the transformer was loaded from, its
    revision and a checksum of its weights. A transformer that is available nowhere else, because it was trained
    further or never saved, is stored in the folder `base` next to the adapter.
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
            raise ValueError(
                "quantization_config: not supported for ACT; only frozen encoders of other modalities can be quantized"
            )
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        recorded = config.part("base")
        if not recorded.is_elsewhere:
            source, found = adapter_subfolder(name, hub, recorded.subfolder or FOLDER)
            location = f"{name}: {recorded.subfolder or FOLDER}/"
        else:
            location = source = recorded.name_or_path
            found = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
            if recorded.revision is not None:
                found["revision"] = recorded.revision
        base = open_base(source, config, **found)
        if recorded.checksum is not None and (checksum := weights_checksum_of(base)) != recorded.checksum:
            raise EncoderMismatchError(
                f"{location}: the pretrained weights have checksum {checksum}; expected {recorded.checksum}, that "
                f"of the weights that the adapter in {name} was trained with"
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
        """Write the config with the source of the pretrained weights, and the weights if they have none."""
        config = copy.deepcopy(self.config)
        # The autoencoder is only needed for pretraining.
        config.autoencoder_config = None
        source = self._find_base()
        if source is None:
            base = self.base_model
            state = own_state(base)
            config.set_part("base", None)
            _save_state(base, copy.deepcopy(config), state, Path(directory) / FOLDER)
            source = PretrainedPart(checksum=tensors_checksum(state), subfolder=FOLDER, stored=True)
        config.set_part("base", source)
        config.save_pretrained(directory)

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Compare checksums of the weights; see `AdapterLoadingMixin`.

        In half precision, weights are not compared.
        """
        part = type(self.config).from_dict(recorded).part("base")
        expected = part.checksum
        if expected is None or self.base_model.dtype != torch.float32:
            return
        checksum = weights_checksum_of(self.base_model)
        if checksum != expected:
            source = part.name_or_path
            raise EncoderMismatchError(
                f"{adapter}: the adapter was trained with "
                f"{f'the weights of {source!r}' if source else f'those in {FOLDER}/'}, checksum {expected}; the base "
                f"model's weights have {checksum}. Other weights would change results silently. Load the base model "
                f"from there, with revision={part.revision!r}, or load the adapter's repository with an "
                "auto class, which does so automatically"
            )

    def _find_base(self) -> PretrainedPart | None:
        """Find a repository or directory whose weights equal this model's; None if there is none.

        Raises:
            ValueError: If an adapter is temporarily merged into the weights.
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
                stored = own_state(open_base(name, config, **hub))
            except (OSError, ValueError, RuntimeError):
                continue  # gone, or another model
            ours = own_state(base)
            if ours.keys() == stored.keys() and not differing(ours, stored):
                return PretrainedPart(name, revision, tensors_checksum(stored))
        return None


def open_base(name: str | os.PathLike, config: ActConfig, **hub: Any) -> PreTrainedModel:
    """Load a point transformer from any checkpoint that contains one, in full precision.

    Args:
        name: Directory or hub repository.
        config: Config of the transformer.
        **hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        ValueError: If the checkpoint lacks weights of it, or also holds an adapter.
    """
    from hf_any3d.modeling.act.modeling_act import ActModel

    if find_adapter_config_file(name, **{key: value for key, value in hub.items() if value is not None}):
        raise ValueError(
            f"{name}: holds an adapter (adapter_config.json) with the pretrained weights; expected weights only"
        )
    config = copy.deepcopy(config)
    config.autoencoder_config = None
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Heads, a decoder or a class token of the checkpoint may be unused on purpose.
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
    missing = sorted((*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])))
    if missing:
        raise ValueError(f"{name}: lacks weights of the point transformer: {', '.join(missing[:8])}")
    return base


def weights_checksum_of(base: PreTrainedModel) -> str:
    """Compute the checksum of a point transformer without its adapters."""
    return tensors_checksum(own_state(base))


def _save_state(base: PreTrainedModel, config: ActConfig, state: dict[str, torch.Tensor], folder: Path) -> None:
    model = type(base)(config)
    model.load_state_dict(state)
    # Without a model card, as it is stored inside another repository.
    PreTrainedModel.save_pretrained(model, folder)
