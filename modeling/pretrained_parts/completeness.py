"""What is refused when a model is opened: weights that are missing or not finite, arguments that mean nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.pretrained_parts.tensors import not_finite

# Arguments that auto classes and pipelines hand on, or that change nothing here.
_WITHOUT_EFFECT = {
    *("_commit_hash", "_from_auto", "_from_pipeline", "_fast_init", "adapter_kwargs", "adapter_name", "code_revision"),
    *("disable_mmap", "from_flax", "from_tf", "generation_config", "low_cpu_mem_usage", "mirror"),
    *("offload_state_dict", "proxies", "tqdm_class", "trust_remote_code", "use_safetensors", "weights_only"),
}
_NOT_SUPPORTED = {
    *("device_mesh", "distributed_config", "fusion_config", "gguf_file", "kernel_config", "key_mapping", "max_memory"),
    *("offload_buffers", "offload_folder", "state_dict", "tp_plan", "tp_size", "use_kernels", "variant"),
}


def without_transformers_arguments(arguments: dict[str, Any], what: str) -> dict[str, Any]:
    """Take out arguments of `from_pretrained` that are known to transformers; what is left is meant for the config.

    Args:
        arguments: What was given.
        what: What is opened, for messages.

    Raises:
        ValueError: If one is given that this way of opening cannot heed.
    """
    given = sorted(name for name in _NOT_SUPPORTED & arguments.keys() if arguments[name])
    if given:
        raise ValueError(f"{given[0]}={arguments[given[0]]!r}: not supported for {what}")
    return {name: value for name, value in arguments.items() if name not in _WITHOUT_EFFECT | _NOT_SUPPORTED}


def check_arguments(model_class: type, config: PreTrainedConfig, arguments: dict[str, Any]) -> None:
    """Raise the error of a call with arguments that are no settings of the config.

    Raises:
        TypeError: As for a model that is opened whole.
    """
    if unknown := sorted(name for name in arguments if not hasattr(config, name)):
        raise TypeError(f"{model_class.__name__}.__init__() got an unexpected keyword argument {unknown[0]!r}")


def class_of_saved(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the model that a config was saved with, where it is one of ours; else `model_class`."""
    ours = [base for base in model_class.__mro__ if getattr(base, "config_class", None) is model_class.config_class]
    root = [base for base in ours if issubclass(base, PreTrainedModel)][-1]
    known = {root, *_subclasses(root)}
    return next((model for model in known if model.__name__ in (config.architectures or ())), model_class)


def _subclasses(root: type) -> set[type]:
    children = set(root.__subclasses__())
    return children.union(*(_subclasses(child) for child in children))


def refuse_other_shapes(
    model_class: type[PreTrainedModel], folder: str | os.PathLike, hub: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Raise an error if the weights in a directory have other shapes than its config asks for, before any is made.

    transformers finds that out too, but only after it has made every weight that does not fit, which a config that
    asks for a large model turns into gigabytes.

    Args:
        model_class: What is opened.
        folder: The directory.
        hub: `subfolder` and the like.
        settings: Further arguments of `from_pretrained`.

    Raises:
        ValueError: With the first weights that do not fit.
    """
    if settings.get("ignore_mismatched_sizes") or settings.get("quantization_config") is not None:
        return
    config = settings.get("config")
    if not isinstance(config, PreTrainedConfig):
        given = {key: value for key, value in settings.items() if key in _fields(model_class.config_class)}
        config = model_class.config_class.from_pretrained(folder, **hub, **given)
    if any(getattr(part, "quantization_config", None) for part in _configs(config)):
        return
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    wrong = [
        f"{name} has {shape} instead of {expected[name]}"
        for name, shape in sorted(_stored_shapes(Path(folder, hub.get("subfolder") or "")))
        if expected.get(name, shape) != shape
    ]
    if wrong:
        raise ValueError(
            f"{folder}: size mismatch between the weights and the config: {listed(wrong)}; with "
            "ignore_mismatched_sizes=True these weights start fresh"
        )


def _fields(config_class: type[PreTrainedConfig]) -> set[str]:
    return {*config_class.__dataclass_fields__, *config_class.attribute_map, "num_labels", "id2label", "label2id"}


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _configs(value)


def _stored_shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob("model-*-of-*.safetensors"))
    for file in files:
        try:
            with safe_open(file, "pt") as stored:
                names = stored.keys()
                yield from [(name, stored.get_slice(name).get_shape()) for name in names]
        except SafetensorError:  # transformers says what is wrong with the file
            return


def refuse_lost_weights(model: PreTrainedModel, name: str, info: dict[str, Any], hub: dict[str, Any]) -> None:
    """Raise an error if a saved model lacks weights that it had when it was saved.

    A new head on a pretrained model, or a part that was switched on by an argument, starts fresh as in transformers:
    the saved model never had it.

    Args:
        model: The opened model.
        name: Directory or repository.
        info: What `output_loading_info` gave.
        hub: `revision`, `token`, `cache_dir` and the like.

    Raises:
        ValueError: With the names of the weights.
    """
    missing = set(info["missing_keys"])
    if not missing:
        return
    config = type(model).config_class.from_pretrained(name, **hub)
    saved_class = class_of_saved(type(model), config)
    with torch.device("meta"):
        saved = saved_class(config)
    prefix = f"{type(model).base_model_prefix}."

    def bare(key: str) -> str:
        # As in a base model, and without layers that a config puts around others.
        return key.removeprefix(prefix).replace(".base_layer.", ".")

    had = {bare(key) for key in saved.state_dict()}
    if lost := sorted(key for key in missing if bare(key) in had):
        raise ValueError(
            f"{name}: the saved {saved_class.__name__} lacks {listed(lost)}; without them its answers would be "
            "random. Expected the weights as they were saved"
        )


def refuse_non_finite(model: PreTrainedModel, name: str) -> None:
    """Raise an error if weights are NaN or infinite.

    Raises:
        ValueError: With their names.
    """
    if wrong := not_finite(model):
        raise ValueError(f"{name}: {listed(wrong)} not finite (NaN or infinity); expected finite weights")


def listed(names: list[str], most: int = 8) -> str:
    """Some names in one line, and how many more there are."""
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
