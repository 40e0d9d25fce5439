"""Where the weights come from that adapters on ACT's point transformer stand on, and proof of which they are."""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.encoders import AdapterDoorsMixin, own_modules
from hf_any3d.modeling.encoders.sources import EncoderMismatchError, commit_in_cache

FOLDER = "base"


class PretrainedBaseMixin(AdapterDoorsMixin):
    """For models around a pretrained point transformer whose repositories may hold just an adapter and a config.

    The config beside the adapter names the repository or directory that the transformer was loaded from, its revision
    and a checksum of its weights. A transformer that is found nowhere as it is, because it was trained on or never
    stored, is kept in the folder `base` beside the adapter.
    """

    _settings_apart_from_adapters = ("base_", "autoencoder_config")
    _one_precision = True

    @classmethod
    def build_around_pretrained(
        cls,
        name: str,
        config: ActConfig,
        hub: dict[str, Any],
        dtype: Any = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
    ) -> PreTrainedModel:
        """The model around its pretrained transformer, in full precision; see `AdapterDoorsMixin`."""
        if quantization_config is not None:
            raise ValueError("quantization_config: only frozen encoders of other modalities can be quantized")
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        if config.base_name_or_path is None:
            folder = "/".join(part for part in (hub.get("subfolder"), FOLDER) if part)
            where, found = f"{name}: {folder}/", hub | {"subfolder": folder}
            source = name
        else:
            where = source = config.base_name_or_path
            found = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
            if config.base_revision is not None:
                found["revision"] = config.base_revision
        base = open_base(source, config, **found)
        if config.base_checksum is not None and (checksum := weights_checksum_of(base)) != config.base_checksum:
            raise EncoderMismatchError(
                f"{where}: the pretrained weights have checksum {checksum}; expected {config.base_checksum}, those "
                f"that the adapter in {name} was trained around"
            )
        model = cls(config)
        if model.base_model is model:
            return base
        setattr(model, model.base_model_prefix, base)
        return model

    @classmethod
    def _from_whole_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> PreTrainedModel:
        opened = super()._from_whole_repository(name, *args, **kwargs)
        if name is not None and not kwargs.get("subfolder"):
            model = opened[0] if isinstance(opened, tuple) else opened
            model._opened_from = (
                os.fspath(name),
                commit_in_cache(name, kwargs.get("revision"), kwargs.get("cache_dir")),
            )
        return opened

    def save_beside_adapter(self, directory: str | os.PathLike) -> None:
        """Write the config with the home of the pretrained weights, or these where they have none."""
        config = copy.deepcopy(self.config)
        # What it was pretrained with is over.
        config.autoencoder_config = None
        config.base_name_or_path, config.base_revision, config.base_checksum = self._home_of_base()
        if config.base_name_or_path is None:
            base = self.base_model
            state = own_state(base)
            _save_state(base, copy.deepcopy(config), state, Path(directory) / FOLDER)
            config.base_checksum = _checksum(state)
        config.save_pretrained(directory)

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Compare checksums of the weights; see `AdapterDoorsMixin`. In half precision there is nothing to compare."""
        expected = recorded.get("base_checksum")
        if expected is None or self.base_model.dtype != torch.float32:
            return
        checksum = weights_checksum_of(self.base_model)
        if checksum != expected:
            home = recorded.get("base_name_or_path")
            raise EncoderMismatchError(
                f"{adapter}: the adapter was trained around "
                f"{f'the weights of {home!r}' if home else f'those in {FOLDER}/'}, with checksum {expected}; the base "
                f"model's weights have {checksum}. Other weights would change results silently. Build the base model "
                f"from there, with revision={recorded.get('base_revision')!r}, or open the adapter's repository by an "
                "auto class, which does so by itself"
            )

    def _home_of_base(self) -> tuple[str | None, str | None, str | None]:
        """Name, revision and checksum of the place whose weights this model's transformer has; Nones for no place."""
        base, config = self.base_model, self.config
        recorded = (config.base_name_or_path, config.base_revision)
        opened = [vars(model).get("_opened_from", (None, None)) for model in (self, base)]
        for name, revision in (recorded, *opened):
            if name is None:
                continue
            hub = {} if revision is None else {"revision": revision}
            try:
                there = own_state(open_base(name, config, **hub))
            except (OSError, ValueError, RuntimeError):
                continue  # gone, or another model
            ours = own_state(base)
            if ours.keys() == there.keys() and all(
                torch.equal(there[key].to(tensor.dtype), tensor.to(there[key].device)) for key, tensor in ours.items()
            ):
                return name, revision, _checksum(there)
        return None, None, None


def open_base(name: str | os.PathLike, config: ActConfig, **hub: Any) -> PreTrainedModel:
    """Load a point transformer out of any checkpoint that holds one, in full precision.

    Args:
        name: Directory or hub repository.
        config: What the transformer has to be.
        **hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        ValueError: If the checkpoint lacks weights of it.
    """
    from hf_any3d.modeling.act.modeling_act import ActModel

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


def own_state(base: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a point transformer without its adapters, under the names that they have without them."""
    return {
        f"{module_name}.{name}" if module_name else name: tensor.detach()
        for module_name, module in own_modules(base)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and name not in module._non_persistent_buffers_set
    }


def weights_checksum_of(base: PreTrainedModel) -> str:
    """A name for the weights of a point transformer, whatever file they came in: `"sha256:…"`."""
    return _checksum(own_state(base))


def _checksum(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def _save_state(base: PreTrainedModel, config: ActConfig, state: dict[str, torch.Tensor], folder: Path) -> None:
    bare = type(base)(config)
    bare.load_state_dict(state)
    bare.save_pretrained(folder)
