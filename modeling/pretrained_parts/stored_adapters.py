"""Stored adapters of any PEFT method: load them into a model, and check their base model and their settings."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, cached_file

from hf_any3d.modeling.config_checks import read_settings, stored_settings
from hf_any3d.modeling.pretrained_parts.loading import (
    ADAPTER_FILES,
    EarlierNamesMixin,
    listed,
    refuse_other_types,
    refuse_pipes,
    stored_types,
)

# Functions import PEFT, without which models without adapters open.
# Of `cached_file`: a file that is not there is None.
_QUIET = {
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}


def load_adapter_into(
    model: PreTrainedModel, name: str, hub: dict[str, Any], ignore_mismatched_sizes: bool = False
) -> dict[str, list[Any]]:
    """Load the adapter of a directory or hub repository into a model, in place, for inference.

    `model.load_adapter` of transformers supports fewer methods than PEFT (neither VeRA nor the vectors of DoRA).

    Args:
        model: The model to adapt; its layers are wrapped.
        name: Directory or repository with `adapter_config.json`.
        hub: `revision`, `token`, `cache_dir` and the like.
        ignore_mismatched_sizes: Keep the initial values of tensors of another size, such as a head for other labels.

    Returns:
        `missing_keys`, `unexpected_keys` and `mismatched_keys` (name, stored size, size in the model), as transformers
        returns them; only the last may be non-empty.

    Raises:
        ValueError: If its settings are invalid, tensors are missing or unexpected, or sizes differ and
            `ignore_mismatched_sizes` is False.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    refuse_foreign_adapters(name, hub)
    refuse_odd_weights(name, hub)
    with stored_settings(name):
        config = PeftConfig.from_pretrained(name, **hub)
        config.inference_mode = True
        adapted = PeftModel(model, config)
    renamings = model.renamings() if isinstance(model, EarlierNamesMixin) else None
    # Only for names and shapes; PEFT reads them again below.
    weights = load_peft_weights(name, device="cpu", key_mapping=renamings, **hub)
    # PEFT would load what fits and leave the rest as it was initialized.
    stored = {key: tensor.shape for key, tensor in weights.items()}
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {key: tensor.shape for key, tensor in state.items()}
    if missing := sorted(expected.keys() - stored.keys()):
        raise ValueError(f"{name}: the adapter lacks {listed(missing)}")
    if unexpected := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"{name}: the adapter has {listed(unexpected)}, which the model does not have")
    mismatched = sorted((key, shape, expected[key]) for key, shape in stored.items() if shape != expected[key])
    if mismatched and not ignore_mismatched_sizes:
        sizes = [f"{key} has shape {tuple(theirs)}, expected {tuple(ours)}" for key, theirs, ours in mismatched]
        raise ValueError(f"{name}: {listed(sizes)}; ignore_mismatched_sizes=True initializes them")
    adapted.load_adapter(name, "default", ignore_mismatched_sizes=ignore_mismatched_sizes, **hub)
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": mismatched}


def refuse_foreign_adapters(name: str, hub: Mapping[str, Any]) -> None:
    """Raise an error if an adapter makes PEFT fetch others from repositories that it names, or import a module.

    Args:
        name: Directory or hub repository.
        hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        ValueError: It is such an adapter.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    file = cached_file(name, ADAPTER_CONFIG_NAME, **{**_QUIET, **hub})
    if file is None:
        return  # PEFT says so
    settings = read_settings(file)
    method = settings.get("peft_type")
    if not isinstance(method, str) or method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise ValueError(f"{file}: peft_type is {str(method)[:100]!r}; expected one of {known}")
    if method == "XLORA":
        raise ValueError(f"{file}: peft_type 'XLORA' names adapters in other repositories; expected another method")
    if settings.get("megatron_config") is not None:  # PEFT imports the module that is named beside it
        raise ValueError(f"{file}: megatron_config is set; expected None, as these models have no Megatron layers")


def refuse_folder_of_adapters(folder: str | os.PathLike) -> None:
    """Raise an error if a directory holds no model or adapter itself, but adapters with names of their own.

    Raises:
        OSError: Naming their folders.
    """
    folders = sorted(path.parent for path in Path(folder).glob(f"*/{ADAPTER_CONFIG_NAME}"))
    if folders and not any(Path(folder, name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
        names = ", ".join(path.name for path in folders)
        raise OSError(f"{folder}: holds no model, but folders with the adapters {names}; open {folders[0]}")


def refuse_odd_weights(name: str, hub: Mapping[str, Any]) -> None:
    """Raise an error if the weights of an adapter are no file, or of a type that weights are not stored in.

    Args:
        name: Directory or hub repository.
        hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        ValueError: Naming the file, or the weights and their types.
    """
    if os.path.isdir(name):
        folder = Path(name, hub.get("subfolder") or "")
        refuse_pipes(folder)
    else:
        found = cached_file(name, ADAPTER_CONFIG_NAME, **{**_QUIET, **hub})
        if found is None:
            return  # PEFT says so
        folder = Path(found).parent
        # Fetched here, so that the types of the tensors can be read from the files.
        for file in ADAPTER_FILES:
            cached_file(name, file, **{**_QUIET, **hub})
    refuse_other_types(name, stored_types(folder, ADAPTER_FILES), {})


def refuse_offloaded_base(model: nn.Module, adapter: str) -> None:
    """Refuse to load an adapter onto weights that accelerate keeps elsewhere, from where it would overwrite them.

    PEFT 0.21 does not say so: modules that it copies to train them get their old weights back in every call.

    Args:
        model: The base model.
        adapter: Name of the adapter's repository, for the message.

    Raises:
        ValueError: Naming the first such weights.
    """
    offloaded = [
        f"{name}.{weight}" if name else weight
        for name, module in model.named_modules()
        if hasattr(module, "_hf_hook")
        for weight, value in module.named_parameters(recurse=False)
        if value.is_meta
    ]
    if offloaded:
        raise ValueError(
            f"{adapter}: the base model's weights are offloaded ({listed(offloaded, 3)}); expected a base model in "
            "memory, from which accelerate.cpu_offload or disk_offload can remove them after the adapter was loaded"
        )


def check_base(model: PreTrainedModel, recorded: dict[str, Any], adapter: str) -> None:
    """Compare a base model with the one that an adapter was trained on.

    Args:
        model: The base model.
        recorded: The adapter's config.json.
        adapter: Name of the adapter's repository, for messages.

    Raises:
        EncoderMismatchError: If pretrained weights differ. Other differences give a warning.
    """
    model.check_adapter_base(recorded, adapter)
    config = model.config
    own = {field.name for field in dataclasses.fields(type(config))}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    different = [
        f"{name}={getattr(config, name)!r}, the adapter was trained with {recorded[name]!r}"
        for name in sorted(own & recorded.keys())
        if not name.startswith(model._settings_without_effect_on_adapters)
        # Compared as JSON stores them: a tuple comes back as a list.
        and json.loads(json.dumps(getattr(config, name))) != recorded[name]
    ]
    if different:
        warnings.warn(f"{adapter}: the base model differs: {'; '.join(different)}", UserWarning, stacklevel=4)
