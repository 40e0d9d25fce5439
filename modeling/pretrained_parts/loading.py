"""Arguments of `from_pretrained`, and the class that a model was saved with."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.hqq import name_to_linear_tag
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file

from hf_any3d.modeling.layers.direct_weights import keep_unpacked
from hf_any3d.modeling.pretrained_parts.tensors import holds_tensors, own_modules

logger = logging.get_logger(__name__)
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that locate a repository and control its download."""
# Arguments that auto classes and pipelines pass on, or that have no effect on a model that is built around its parts.
_WITHOUT_EFFECT = {
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "adapter_kwargs",
    "code_revision",
    "generation_config",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "use_safetensors",
    "weights_only",
}


def apply_settings(model_class: type, config: PreTrainedConfig, arguments: dict[str, Any]) -> None:
    """Set fields of a config, in place, from arguments of `from_pretrained`; a TypeError for those that it lacks."""
    for name, value in arguments.items():
        # None is what callers pass for an argument that they leave out.
        if name in _WITHOUT_EFFECT or (value is None and not hasattr(config, name)):
            continue
        if not hasattr(config, name):
            raise TypeError(f"{model_class.__name__}.from_pretrained() got an unexpected keyword argument {name!r}")
        setattr(config, name, value)


def dtype_named(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of a name such as "bfloat16"; None for "auto"."""
    if isinstance(dtype, str):
        return None if dtype == "auto" else getattr(torch, dtype)
    return dtype


def encoder_loading(device_map: Any, quantization_config: Any) -> dict[str, Any]:
    """Return `from_pretrained` arguments of an encoder for those of the full model; None stands for the default."""
    loading = {} if quantization_config is None else {"quantization_config": quantization_config}
    return loading if device_map is None else loading | {"device_map": {"": single_device(device_map)}}


def single_device(device_map: Any) -> Any:
    """Return the one device that a `device_map` names: a device, "auto" and the like for the fastest, or a dictionary.

    The encoder's layers are called one by one on outputs of the rest of the model, so all have to be on one device.
    """
    if isinstance(device_map, dict):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(f"device_map={device_map}; expected one device for the whole model")
        return devices.pop()
    # What transformers calls the ways of spreading a model over devices, of which there is one.
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return device_map


@contextmanager
def unused_weights_expected() -> Iterator[None]:
    """Suppress transformers' report of unused weights, for checkpoints of which only a part is loaded on purpose."""
    # transformers has no switch for this report alone.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def is_quantized(part: PreTrainedModel) -> bool:
    """Return whether a model or a part of it has quantized weights, however they came to be so."""
    for _, _, module in own_modules(part):
        # Of transformers, or of torch's own quantization.
        if vars(module).get("hf_quantizer") is not None or "_packed_params" in module._modules:
            return True
        for name, weight in (*module._parameters.items(), *module._buffers.items()):
            if weight is not None and name.endswith("weight") and _is_rounded(weight):
                return True
    return False


def _is_rounded(weight: torch.Tensor) -> bool:
    return not weight.is_floating_point() or holds_tensors(weight)


# Each library for quantization has its own name for the list of modules that it leaves in full precision.
_SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")


def skip_list(quantization: Any) -> str | None:
    """Return the name of the list, in a quantization config, of modules that stay in full precision; None if none."""
    return next((name for name in _SKIP_LISTS if hasattr(quantization, name)), None)


def keep_in_full(
    arguments: dict[str, Any],
    *patterns: str,
    inside: Sequence[str] = (),
    build: Callable[[], PreTrainedModel] | None = None,
) -> dict[str, Any]:
    """Exclude matching modules from the quantization that `arguments` of `from_pretrained` ask for.

    They join the modules that the quantization config itself excludes, and those that transformers excludes of a model
    when a config has no list, such as its last layer: a list of a user never quantizes more than none.

    Args:
        arguments: The arguments, which are not changed.
        *patterns: Names of modules, or regular expressions of them.
        inside: Names of the part that the arguments open, in models around it, by which the user's list may name its
            modules: `encoder.layers.0` is `layers.0` inside `encoder`.
        build: Function that builds the model without weights; by it the modules are found that transformers excludes.
    """
    quantization = arguments.get("quantization_config")
    if isinstance(quantization, dict):
        quantization = AutoQuantizationConfig.from_dict(quantization)
    field = skip_list(quantization)
    given = None if field is None else getattr(quantization, field)
    # Without any list, transformers finds its own.
    if field is None or (given is None and not patterns):
        return arguments
    names = [*(given or ()), *patterns]
    for name, part in itertools.product(given or (), inside):
        # Behind each mention: a part may have modules of its own name.
        for found in re.finditer(rf"(?:^|(?<=\.)){re.escape(part)}(?:\\?\.|$)", name):
            names.append(name[found.end() :] or ".*")
    # With torchao, transformers compares the endings of names of weights, not of modules.
    names += [f"{name}.weight" for name in [*names]]
    if build is not None:
        with torch.device("meta"):
            model = build()
        names += get_keys_to_not_convert(model)
        if field == "skip_modules":
            # HQQ compares names without numbers, and knows no regular expressions.
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear) and not should_convert_module(name, names):
                    names.append(name_to_linear_tag(name))
    quantization = copy.deepcopy(quantization)
    setattr(quantization, field, list(dict.fromkeys(names)))
    return arguments | {"quantization_config": quantization}


def tell_quantized(model: PreTrainedModel, quantization: Any) -> None:
    """Log once which linear layers a quantization config has quantized, and which ones have stayed as they were."""
    if isinstance(quantization, dict):
        quantization = AutoQuantizationConfig.from_dict(quantization)
    rounded: list[str] = []
    left: dict[str, list[str]] = {}
    field = skip_list(quantization)
    given = set((None if field is None else getattr(quantization, field)) or ())
    without_effect = set(given)
    for name, _, module in own_modules(model):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 and not _is_rounded(weight):
            continue
        if _is_rounded(weight):
            rounded.append(name)
        elif isinstance(module, nn.Linear | Conv1D):
            words = name.split(".")
            # Entries may be names inside a part, too.
            tails = [".".join(words[start:]) for start in range(len(words))]
            named = {entry for entry in given if not all(should_convert_module(tail, [entry]) for tail in tails)}
            without_effect -= named
            left.setdefault(f"by {field}" if named else "by default", []).append(name)
    kept = [f"{len(names)} {why} ({listed(_numberless(names), 3)})" for why, names in sorted(left.items())]
    told = (
        f"{type(quantization).__name__} has quantized {len(rounded)} linear layers of {type(model).__name__} "
        f"({listed(_numberless(rounded), 3) or 'none'}); in full precision are {', '.join(kept) or 'none'}"
    )
    if without_effect:
        told += f"; no layer has the name {', '.join(map(repr, sorted(without_effect)))} of {field}"
    logger.warning_once(told)


def _numberless(names: Iterable[str]) -> list[str]:
    """Return names of modules, those that differ in numbers alone once."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))


def set_quantization(part: PreTrainedModel, stored_quantized: bool = False) -> None:
    """Let a quantized part pass on gradients; its config keeps the quantization only of a quantized checkpoint."""
    if not is_quantized(part):
        return
    if not stored_quantized:
        # A loading option, not a property of the weights: the stored ones are not quantized.
        del part.config.quantization_config
    keep_unpacked(part)


def class_of_saved(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that a config was saved with if it is one of ours, else `model_class`."""
    # A config that was never saved names no class.
    names = config.architectures or ()
    if model_class.__name__ in names:
        return model_class
    # The most general class with this config: whatever was saved with it is one of its subclasses.
    classes = [base for base in model_class.__mro__ if getattr(base, "config_class", None) is model_class.config_class]
    classes = [[base for base in classes if issubclass(base, PreTrainedModel)][-1]]
    for base in classes:
        if base.__name__ in names:
            return base
        classes += base.__subclasses__()
    return model_class


@contextmanager
def weights_of(place: object) -> Iterator[None]:
    """Name the file or directory in errors of reading weights that are damaged, or of another model."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{place}: the weights cannot be used ({type(error).__name__}: {error})") from error


def refuse_whole_numbers(model: PreTrainedModel, name: str | os.PathLike, hub: dict[str, Any]) -> None:
    """Refuse stored weights that are whole numbers where a model has floats, which transformers would cast."""
    quiet = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    quiet = {f"_raise_exceptions_for_{kind}": value for kind, value in quiet.items()}
    place = {key: value for key, value in hub.items() if value is not None}
    files = [cached_file(name, SAFE_WEIGHTS_NAME, **place, **quiet)]
    if files == [None] and (index := cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **place, **quiet)):
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({index.replace(SAFE_WEIGHTS_INDEX_NAME, file) for file in shards})
    whole = []
    for file in filter(None, files):
        with safe_open(file, framework="pt") as stored:
            # Only headers are read: I and U are the signed and unsigned integers of safetensors.
            whole += [key for key in stored.keys() if stored.get_slice(key).get_dtype()[0] in "IU"]
    if not whole:
        return
    prefix = f"{model.base_model_prefix}."
    # Names with and without the prefix of a base model are of the same tensor.
    floats = {key.removeprefix(prefix) for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    wrong = sorted(key for key in whole if key.removeprefix(prefix) in floats)
    if wrong:
        raise ValueError(f"{name}: stores {listed(wrong)} as whole numbers; expected floats, as they were trained")


def listed(names: list[str], most: int = 8, separator: str = ", ") -> str:
    """Join the first names, with the number of further ones."""
    return separator.join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
