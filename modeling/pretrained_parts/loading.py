"""Arguments of `from_pretrained`, and checks of the loaded weights: missing, misshapen or not finite."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.layers.forward_contract import keep_unpacked
from hf_any3d.modeling.pretrained_parts.tensors import inner_tensors, not_finite, own_tensors

if TYPE_CHECKING:
    from peft import PeftConfig

# Arguments that auto classes and pipelines pass on, or that have no effect here.
_WITHOUT_EFFECT = {
    *("_commit_hash", "_from_auto", "_from_pipeline", "_fast_init", "adapter_kwargs", "adapter_name", "code_revision"),
    *("disable_mmap", "from_flax", "from_tf", "generation_config", "low_cpu_mem_usage", "mirror"),
    *("offload_state_dict", "proxies", "tqdm_class", "trust_remote_code", "use_safetensors", "weights_only"),
}
_NOT_SUPPORTED = {
    *("device_mesh", "distributed_config", "fusion_config", "gguf_file", "kernel_config", "key_mapping", "max_memory"),
    *("offload_buffers", "offload_folder", "state_dict", "tp_plan", "tp_size", "use_kernels", "variant"),
}


FLOATS = ("BF16", "F16", "F32", "F64")
"""Types of weights, by their names in safetensors."""
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
# What counts batches, or says which entries of a weight a PEFT method trains.
_INTEGERS, _COUNTED = ("I32", "I64"), re.compile(r"num_batches_tracked$|_indices\b|\bfrod_s_")
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def apply_settings(model_class: type, config: PreTrainedConfig, arguments: dict[str, Any], what: str) -> None:
    """Set fields of a config from keyword arguments of `from_pretrained`; transformers' own ones are skipped.

    Args:
        model_class: Class to load, for messages.
        config: Its config, changed in place.
        arguments: Keyword arguments of the call.
        what: Description of what is loaded, for messages.

    Raises:
        ValueError: If an argument is not supported by this way of loading.
        TypeError: As transformers raises for a complete model, if an argument is not a field of the config.
    """
    given = sorted(name for name in _NOT_SUPPORTED & arguments.keys() if arguments[name])
    if given:
        raise ValueError(f"{given[0]}={arguments[given[0]]!r}: not supported for {what}")
    settings = {name: value for name, value in arguments.items() if name not in _WITHOUT_EFFECT | _NOT_SUPPORTED}
    if unknown := sorted(name for name in settings if not hasattr(config, name)):
        raise TypeError(f"{model_class.__name__}.__init__() got an unexpected keyword argument {unknown[0]!r}")
    for name, value in settings.items():
        setattr(config, name, value)


def dtype_named(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of a name such as "bfloat16"; None for "auto"."""
    if isinstance(dtype, str):
        return None if dtype == "auto" else getattr(torch, dtype)
    return dtype


def encoder_loading(device_map: Any, quantization_config: Any) -> dict[str, Any]:
    """Return `from_pretrained` arguments of an encoder for those of the full model.

    Args:
        device_map: A device, its name, "auto" for the fastest one, or a dictionary that names one device; None for the
            CPU. The encoder's layers are called one by one on outputs of the rest of the model, so all have to be on
            one device.
        quantization_config: A quantization config of transformers; None for full weights.

    Raises:
        ValueError: If the dictionary names several devices.
    """
    loading = {} if quantization_config is None else {"quantization_config": quantization_config}
    return loading if device_map is None else loading | {"device_map": {"": single_device(device_map)}}


def single_device(device_map: Any) -> Any:
    """Return the device that a `device_map` names, see `encoder_loading`.

    Raises:
        ValueError: If a dictionary names several devices.
    """
    if isinstance(device_map, dict):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(f"device_map={device_map}; expected one device for the whole model")
        return devices.pop()
    if device_map == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return device_map


class EarlierNamesMixin:
    """For models whose modules had other names in earlier versions: their checkpoints and adapters open unchanged.

    `_earlier_names` maps the beginning of an earlier name to that of today. It applies to `from_pretrained`, to
    `load_state_dict`, as a resumed training calls it, and to adapters; for PEFT's models see
    `hf_any3d.integration.patches`.
    """

    _earlier_names: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def todays_name(cls, name: str) -> str:
        """Return today's name of a module or tensor, for one of earlier versions or of today."""
        for before, now in cls._earlier_names.items():
            if name == before or name.startswith(f"{before}."):
                return now + name.removeprefix(before)
        return name

    @classmethod
    def earlier_name(cls, name: str) -> str:
        """Return the name that a module of today's name had in earlier versions."""
        for before, now in cls._earlier_names.items():
            if name == now or name.startswith(f"{now}."):
                return before + name.removeprefix(now)
        return name

    @classmethod
    def renamings(cls) -> dict[str, str]:
        """Return regular expressions of the beginnings of earlier names, and those of today, as `key_mapping`."""
        return {rf"^{re.escape(before)}\.": f"{now}." for before, now in cls._earlier_names.items()}

    def use_todays_names(self, config: PeftConfig) -> None:
        """Change the names of modules in an adapter's settings, in place, where they are those of earlier versions."""
        from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND  # here, as in `load_adapter`

        for field in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters"):
            given = getattr(config, field, None)
            if isinstance(given, str) and given.lower() != INCLUDE_LINEAR_LAYERS_SHORTHAND:
                # A regular expression; what it matched in earlier versions is named one by one.
                names = [name for name, _ in self.named_modules()]
                matched = {name for name in names if re.fullmatch(given, name)}
                before = {name for name in names if re.fullmatch(given, self.earlier_name(name))}
                if before - matched:
                    setattr(config, field, before | matched)
            elif isinstance(given, list | tuple | set):
                setattr(config, field, type(given)(map(self.todays_name, given)))
        for field in ("rank_pattern", "alpha_pattern"):
            if isinstance(given := getattr(config, field, None), Mapping):
                setattr(config, field, {self.todays_name(name): value for name, value in given.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A list, since keys are replaced. In place, so that torch compares the names of today with its own.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if (renamed := prefix + self.todays_name(key.removeprefix(prefix))) != key:
                state_dict[renamed] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does, also under the names of earlier versions."""
        renamings = cls.renamings()
        if isinstance(places := kwargs.get("device_map"), Mapping):
            kwargs["device_map"] = {cls.todays_name(name): place for name, place in places.items()}
        key_mapping = renamings | (kwargs.pop("key_mapping", None) or {})
        opened = super().from_pretrained(pretrained_model_name_or_path, *args, key_mapping=key_mapping, **kwargs)
        model = opened[0] if isinstance(opened, tuple) else opened
        # Saving would reverse them.
        conversions = getattr(model, "_weight_conversions", None) or ()
        model._weight_conversions = [one for one in conversions if one.source_patterns[0] not in renamings]
        return opened

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """Add an adapter as `PreTrainedModel.add_adapter` does, also to modules by their earlier names."""
        self.use_todays_names(adapter_config)
        super().add_adapter(adapter_config, adapter_name)

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        *args: Any,
        adapter_kwargs: dict[str, Any] | None = None,
        load_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load an adapter as `PreTrainedModel.load_adapter` does, also under the names of earlier versions."""
        if load_config is None:  # that of `from_pretrained` has the renamings
            kwargs["weight_mapping"] = get_model_conversion_mapping(self, key_mapping=self.renamings())
        if peft_config is None and peft_model_id is not None:
            from peft import PeftConfig  # here, since models without adapters open without PEFT

            # Read here: transformers adds the adapter as soon as it has read its settings.
            place = {**(getattr(load_config, "download_kwargs", None) or {}), **(adapter_kwargs or {})}
            peft_config = PeftConfig.from_pretrained(os.fspath(peft_model_id), **place)
            kwargs["download_kwargs"] = place
        if peft_config is not None:
            self.use_todays_names(peft_config)
        given = {"adapter_kwargs": adapter_kwargs, "load_config": load_config}
        return super().load_adapter(peft_model_id, adapter_name, peft_config, *args, **given, **kwargs)


@contextmanager
def unused_weights_expected() -> Iterator[None]:
    """Suppress transformers' report of unused weights, for checkpoints of which only a part is loaded on purpose."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def is_quantized(part: PreTrainedModel) -> bool:
    """Return whether a model or a part of it has quantized weights, however they came to be so."""
    if any(vars(own).get("hf_quantizer") is not None or "_packed_params" in own._modules for own in part.modules()):
        return True
    weights = (own.tensor for own in own_tensors(part) if own.name.endswith("weight"))
    return any(not weight.is_floating_point() or bool(inner_tensors(weight)) for weight in weights)


def keep_in_full(arguments: dict[str, Any], *patterns: str) -> dict[str, Any]:
    """Return arguments of `from_pretrained` whose quantization leaves some modules in full precision.

    Args:
        arguments: Its keyword arguments. A `quantization_config` that itself says what to leave is not changed.
        *patterns: Regular expressions of the modules' paths.
    """
    given = arguments.get("quantization_config")
    fields = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")
    # Each library for quantization has its own name for this.
    field = next((name for name in fields if hasattr(given, name)), None)
    if field is None or getattr(given, field) is not None:
        return arguments
    given = copy.deepcopy(given)
    setattr(given, field, list(patterns))
    return arguments | {"quantization_config": given}


def set_quantization(part: PreTrainedModel, stored_quantized: bool = False) -> None:
    """Let a quantized part pass on gradients, and remove the quantization from its config.

    Args:
        part: The pretrained part; unchanged if it is not quantized.
        stored_quantized: Whether its checkpoint is quantized; the config then keeps the setting.
    """
    if not is_quantized(part):
        return
    if not stored_quantized:
        # A loading option, not a property of the weights: the stored ones are not quantized.
        del part.config.quantization_config
    keep_unpacked(part)


def class_of_saved(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that a config was saved with if it is one of ours, else `model_class`."""
    ours = [base for base in model_class.__mro__ if getattr(base, "config_class", None) is model_class.config_class]
    # The most general class with this config: whatever was saved with it is one of its subclasses.
    root = [base for base in ours if issubclass(base, PreTrainedModel)][-1]
    known = {root, *_subclasses(root)}
    return next((model for model in known if model.__name__ in (config.architectures or ())), model_class)


def refuse_other_shapes(
    model_class: type[PreTrainedModel], folder: str | os.PathLike, hub: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Raise an error before loading if the weights in a directory have other shapes than its config defines.

    transformers checks this too, but only after allocating every mismatched weight, which may take gigabytes if the
    config defines a large model. `hub` and `settings` are the arguments of `from_pretrained`.

    Raises:
        ValueError: Naming the first mismatched weights.
    """
    if settings.get("ignore_mismatched_sizes") or settings.get("quantization_config") is not None:
        return
    config = settings.get("config")
    if not isinstance(config, PreTrainedConfig):
        given = {key: value for key, value in settings.items() if key in _fields(model_class.config_class)}
        config = model_class.config_class.from_pretrained(folder, **hub, **given)
    # Quantized weights are stored in other shapes.
    if any(getattr(part, "quantization_config", None) for part in _configs(config)):
        return
    expected = {name: list(tensor.shape) for name, tensor in built_on_meta(model_class, config, folder).items()}
    prefix = f"{model_class.base_model_prefix}."

    def expected_shape(name: str) -> list[int] | None:
        if issubclass(model_class, EarlierNamesMixin):
            name = model_class.todays_name(name)
        # With and without a head.
        names = (name, name.removeprefix(prefix), prefix + name)
        return next((expected[name] for name in names if name in expected), None)

    mismatched = [
        f"{name} has {shape} instead of {expected_shape(name)}"
        for name, shape in sorted(_stored_shapes(Path(folder, hub.get("subfolder") or "")))
        if expected_shape(name) not in (None, shape)
    ]
    if mismatched:
        raise ValueError(
            f"{folder}: size mismatch between the weights and the config: {listed(mismatched)}; with "
            "ignore_mismatched_sizes=True these weights are newly initialized"
        )


def built_on_meta(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, place: str | os.PathLike
) -> dict[str, torch.Tensor]:
    """Return the state dict of a model without memory for it, which needs consistent settings.

    Raises:
        ValueError: If the model cannot be built from its config; names `place`, where the config is from.
    """
    with stored_settings(place), torch.device("meta"):
        return model_class(copy.deepcopy(config)).state_dict()


def refuse_lost_weights(model: PreTrainedModel, name: str, info: dict[str, Any], hub: dict[str, Any]) -> None:
    """Raise an error if a saved model lacks weights that it had when it was saved.

    A new head on a pretrained model, or a module that was switched on by an argument, is newly initialized as in
    transformers: the saved model never had it. `info` is the result of `output_loading_info`.

    Raises:
        ValueError: Naming the weights.
    """
    missing = set(info["missing_keys"])
    if not missing:
        return
    config = type(model).config_class.from_pretrained(name, **hub)
    saved_class = class_of_saved(type(model), config)
    saved = built_on_meta(saved_class, config, name)
    prefix = f"{type(model).base_model_prefix}."

    def base_name(key: str) -> str:
        # The name in a base model, without wrappers that a config puts around layers.
        return key.removeprefix(prefix).replace(".base_layer.", ".")

    had = {base_name(key) for key in saved}
    if lost := sorted(key for key in missing if base_name(key) in had):
        raise ValueError(
            f"{name}: the saved {saved_class.__name__} lacks {listed(lost)}; without them its predictions would "
            "be random. Expected the weights as they were saved"
        )


def refuse_non_finite(model: PreTrainedModel, name: str) -> None:
    """Raise an error if weights are NaN or infinite.

    Raises:
        ValueError: Naming the weights.
    """
    if names := not_finite(model):
        raise ValueError(
            f"{name}: {listed(names)} not finite (NaN or infinity), or a negative variance; expected finite weights"
        )


def refuse_other_types(place: str | os.PathLike, stored: Mapping[str, str], own: Mapping[str, torch.Tensor]) -> None:
    """Raise an error if stored weights have a type that weights are not stored in, such as integers.

    They would be converted without a word, which truncates what was trained.

    Args:
        place: Directory, repository or file, for messages.
        stored: Name of the type of each stored tensor, see `stored_types`.
        own: The tensors of the model, some of which are integers.

    Raises:
        ValueError: Naming the first of these weights.
    """
    integers = {name for name, tensor in own.items() if not tensor.is_floating_point()}
    wrong = [
        f"{name} as {kind}"
        for name, kind in sorted(stored.items())
        if kind not in FLOATS and name not in integers and not (kind in _INTEGERS and _COUNTED.search(name))
    ]
    if wrong:
        raise ValueError(f"{place}: holds {listed(wrong)}; expected one of {', '.join(sorted(FLOATS))}")


def refuse_pipes(folder: Path) -> None:
    """Raise an error if a weight file of a directory is not a regular file: reading a pipe would wait forever.

    Raises:
        ValueError: Naming it.
    """
    for name in (*WEIGHT_FILES, *ADAPTER_FILES):
        for file in folder.glob(name):
            if not file.is_file():
                raise ValueError(f"{file}: not a regular file; expected weights")


def stored_types(folder: Path, names: Sequence[str] = WEIGHT_FILES) -> dict[str, str]:
    """Return the name of the type of each tensor in the weight files of a directory.

    Raises:
        ValueError: If a file is damaged.
    """
    types: dict[str, str] = {}
    for name in names:
        for file in sorted(folder.glob(name)):
            with weights_of(file):
                types |= _types_in(file)
        if types:
            break  # transformers and PEFT read the first of these kinds that there is
    return types


@contextmanager
def weights_of(file: str | os.PathLike) -> Iterator[None]:
    """Name a file of weights in errors of reading it.

    Raises:
        ValueError: If it is damaged: cut, or no file of weights.
    """
    try:
        yield
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError, KeyError) as error:
        raise ValueError(f"{file}: damaged weights ({type(error).__name__}: {error})") from error


def _types_in(file: Path) -> dict[str, str]:
    if file.suffix == ".safetensors":
        # The header alone has the types, so no tensor is read.
        with safe_open(file, "pt") as stored:
            return {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    # Without memory for the values, as only dtypes are asked for.
    content = torch.load(file, map_location="meta", weights_only=True)
    tensors = content.items() if isinstance(content, Mapping) else ()
    return {name: _NAMES.get(one.dtype, str(one.dtype)) for name, one in tensors if isinstance(one, torch.Tensor)}


def listed(names: list[str], most: int = 8) -> str:
    """Join the first names, with the number of further ones."""
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _subclasses(root: type) -> set[type]:
    children = set(root.__subclasses__())
    return children.union(*(_subclasses(child) for child in children))


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
        with weights_of(file), safe_open(file, "pt") as stored:
            yield from [(name, stored.get_slice(name).get_shape()) for name in stored.keys()]  # noqa: SIM118
