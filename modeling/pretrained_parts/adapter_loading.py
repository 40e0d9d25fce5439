"""Open, compare and save models whose repositories hold only an adapter and a config.

`LibraryModelMixin` calls these functions; what a model has to tell them are its methods there.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.hooks import hooks
from hf_any3d.modeling.pretrained_parts.adapted_part import AdaptedPartMixin as _Model
from hf_any3d.modeling.pretrained_parts.adapter_tasks import record_of, stored_task, take_task
from hf_any3d.modeling.pretrained_parts.contents import (
    Contents,
    adapter_folder,
    contents_of,
    find_file,
    is_lost_directory,
)
from hf_any3d.modeling.pretrained_parts.frozen_statistics import STATISTICS_OF_BASE, warn_of_moved_statistics
from hf_any3d.modeling.pretrained_parts.loading import (
    apply_settings,
    class_of_saved,
    dtype_named,
    is_quantized,
    listed,
    single_device,
    weights_of,
)
from hf_any3d.modeling.pretrained_parts.record import (
    PretrainedPart,
    absolute_name,
    is_directory,
    leave_out_directories,
    located,
    tell_stored,
)
from hf_any3d.modeling.pretrained_parts.sources import WEIGHT_ENTRIES, EncoderMismatchError
from hf_any3d.modeling.pretrained_parts.task_settings import Task, described, is_of_task, set_task, task_of
from hf_any3d.modeling.pretrained_parts.tensors import is_local, own_state, tensors_checksum

BASE_FOLDER = "base_model"
"""Folder of an adapter with the model below it, if that has no public name."""


def refuse_merged_adapters(model: nn.Module) -> None:
    """Raise a ValueError if PEFT's `merge_adapter` has changed the weights for as long as an adapter is merged."""
    merged = sorted({name for module in model.modules() for name in vars(module).get("merged_adapters", ())})
    if merged:
        raise ValueError(
            f"the adapter {', '.join(map(repr, merged))} is merged into the weights; expected unmerge_adapter() "
            "before saving, or merge_and_unload() to keep it merged"
        )


def refuse_folder_of_adapters(folder: str | os.PathLike) -> None:
    """Raise an OSError that names them if a directory holds no model or adapter itself, but folders of adapters."""
    folder = Path(folder)
    adapters = sorted(folder.glob(f"*/{ADAPTER_CONFIG_NAME}"))
    # PEFT saves several adapters of a model as folders beside each other.
    if adapters and not (folder / CONFIG_NAME).is_file() and not (folder / ADAPTER_CONFIG_NAME).is_file():
        names = ", ".join(path.parent.name for path in adapters)
        raise OSError(f"{folder} holds no model, but folders with the adapters {names}; open {adapters[0].parent}")


def open_adapter(cls: type[_Model], holds: Contents, *args: Any, **rest: Any) -> Any:
    """Open a model with the adapter of a directory or repository; see `Contents` for where its base is.

    The arguments are those of `from_pretrained` but the ones that find files.
    """
    if holds.has_weights:
        model, info = _unpacked(cls._from_full_repository(holds.name, *args, **holds.hub, **without_adapter(rest)))
    elif holds.config is not None and opens_on_part(cls, holds, rest.get("config")):
        return _from_adapter_repository(cls, holds, **rest)
    else:
        model, info = _unpacked(open_named_base(cls, holds, *args, **rest))
    if _shares_weights(holds):
        task = check_adapter_to_load(model, holds.name, dict(holds.hub))
        _add_adapter(model, holds.name, dict(holds.hub), False, task)
        model._hf_peft_config_loaded = True
        model.eval()
    else:
        model.load_adapter(holds.name, adapter_kwargs=dict(holds.hub))
    _set_given_task(model, holds.name, rest)
    return (model, info) if info is not None else model


def _set_given_task(model: _Model, name: str, arguments: Mapping[str, Any]) -> None:
    """Let arguments of `from_pretrained` say more than the config beside an adapter does."""
    config = arguments.get("config")
    given = task_of(config) if isinstance(config, PreTrainedConfig) else {}
    given |= {key: value for key, value in arguments.items() if is_of_task(key)}
    names = given.get("id2label")
    if names is not None and len(names) != model.config.num_labels:
        raise ValueError(f"{name}: id2label={names}; the adapter is for {described(task_of(model.config))}")
    if names is not None:
        given.setdefault("label2id", {label: int(number) for number, label in names.items()})
    set_task(model.config, given)


def _shares_weights(holds: Contents) -> bool:
    """Return whether layers of the adapter share weights (VeRA), which `load_adapter` of transformers refuses."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    kind = (holds.adapter or {}).get("peft_type")
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType[kind]) if kind in PeftType.__members__ else None
    return getattr(tuner, "uses_shared_state", False)


def _unpacked(opened: Any) -> tuple[Any, Any]:
    return opened if isinstance(opened, tuple) else (opened, None)


def without_adapter(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `from_pretrained` with which transformers ignores an adapter beside a full model."""
    # It looks for one in this subfolder alone, which no repository has.
    given = arguments.get("adapter_kwargs") or {}
    return {**arguments, "adapter_kwargs": {"subfolder": "no-adapter", **given}}


def opens_on_part(cls: type[_Model], holds: Contents, config: Any = None) -> bool:
    """Return whether pretrained part and adapter of a repository are the complete model."""
    if not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(holds.name, **holds.hub)
    if cls._adapted_part is None or not cls.has_adapted_part(config):
        return False
    recorded = config.part(cls._adapted_part)
    # Models of earlier versions have the part in a folder of its name, without a record of it.
    is_here = recorded.subfolder or has_part_folder(cls, holds.name, holds.hub)
    if not recorded.is_elsewhere and not is_here and _is_of_model(cls, holds):
        return False
    # Only names are needed, and no memory.
    with stored_settings(holds.name), torch.device("meta"):
        model = class_of_saved(cls, config)(copy.deepcopy(config))
    return not modules_left_out(model, (holds.adapter or {}).get("modules_to_save"))


def has_part_folder(cls: type[_Model], name: str, hub: dict[str, Any]) -> bool:
    """Return whether a repository has the weights of the pretrained part in a folder of its name."""
    return any(find_file(name, f"{cls._adapted_part}/{entry}", hub) for entry in WEIGHT_ENTRIES)


def _is_of_model(cls: type[_Model], holds: Contents) -> bool:
    """Return whether the base that an adapter names is a model of the same type."""
    base = holds.base
    if base is None or is_lost_directory(base):
        return False
    with suppress(OSError, ValueError):
        return PreTrainedConfig.get_config_dict(base)[0].get("model_type") == cls.config_class.model_type
    return False


def open_named_base(cls: type[_Model], holds: Contents, *args: Any, **rest: Any) -> Any:
    """Open the base model that an adapter names, without the adapter.

    Raises:
        ValueError: It is another model, or the adapter names none; says how to open the adapter.
        OSError: It is a directory that is not here.
    """
    base = holds.base
    if base == f"./{BASE_FOLDER}":  # in the adapter's repository on the hub
        place = "/".join(filter(None, (holds.hub.get("subfolder"), BASE_FOLDER)))
        rest = {key: value for key, value in rest.items() if key != "adapter_kwargs"}
        return cls.from_pretrained(holds.name, *args, **{**holds.hub, "subfolder": place}, **rest)
    # Revision and subfolder say where the adapter is; the base has a revision of its own.
    around = {key: value for key, value in holds.hub.items() if key not in ("revision", "subfolder")}
    revision = (holds.adapter or {}).get("revision")
    if revision is not None:
        around["revision"] = revision
    way_out = (
        "build that again and open the adapter with PeftModel.from_pretrained(model, …), or save it with "
        "modules_to_save=trainable_module_names(model)"
    )
    file = os.path.join(holds.name, holds.hub.get("subfolder") or "", ADAPTER_CONFIG_NAME)
    if is_lost_directory(base):
        raise OSError(
            f"{file} names {base!r} as its base model, a directory that is not here; open that where it is now and "
            "the adapter with PeftModel.from_pretrained(model, …), or correct base_model_name_or_path"
        )
    # The type is compared before anything is downloaded.
    kind = PreTrainedConfig.get_config_dict(base, **around)[0].get("model_type") if base else None
    if kind != cls.config_class.model_type:
        raise ValueError(
            f"{file} names {base!r} as its base model{f', a {kind}' if kind else ''}, and not the {cls.__name__} "
            f"that it was trained on; {way_out}"
        )
    rest = {key: value for key, value in rest.items() if key != "adapter_kwargs"}
    return cls.from_pretrained(base, *args, **around, **rest)


def _from_adapter_repository(
    cls: type[_Model],
    holds: Contents,
    config: PreTrainedConfig | str | os.PathLike | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    device_map: str | torch.device | dict[str, Any] | None = None,
    quantization_config: Any = None,
    output_loading_info: bool = False,
    ignore_mismatched_sizes: bool = False,
    **overrides: Any,
) -> PreTrainedModel:
    name = holds.name
    hub = dict(holds.hub)
    if not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(name if config is None else config, **hub)
    config = copy.deepcopy(config)
    apply_settings(cls, config, overrides)
    dtype = dtype_named(dtype or torch_dtype)
    loading = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map}
    with stored_settings(name):
        # Of the class that was saved, as the adapter has weights of its head too.
        saved_class = class_of_saved(cls, config)
        model = saved_class.build_for_adapter(name, config, hub, **loading, quantization_config=quantization_config)
    cast_base(model, dtype)
    if not isinstance(model.base_model, cls) and not isinstance(model, cls):
        raise ValueError(f"{name} holds a {type(model).__name__}, which {cls.__name__} cannot open")
    info = _add_adapter(model, name, hub, ignore_mismatched_sizes)
    model._hf_peft_config_loaded = True
    model.name_or_path = name
    if device_map is not None:
        model.to(single_device(device_map))
    if not isinstance(model, cls):
        # The repository has a head, and its base model was asked for: that keeps the adapter.
        base = model.base_model
        base.peft_config = model.peft_config
        base._hf_peft_config_loaded = True
        model = base
    return (model.eval(), info) if output_loading_info else model.eval()


def stated_base(cls: type[_Model], name: str, recorded: PretrainedPart, hub: dict[str, Any]) -> PretrainedPart | None:
    """Return the place of the pretrained part in adapter_config.json, if it differs from the recorded one.

    That is the address that people edit when a base has moved, as for any adapter of PEFT. Its weights are
    compared with the recorded ones like those of the recorded address.
    """
    holds = contents_of(name, hub)
    base = holds.base
    if not base or _is_same_place(base, recorded.name_or_path):
        return None
    is_directory = os.path.isdir(base)
    is_lost = is_lost_directory(recorded.name_or_path)
    if not is_directory:
        # A directory of another machine, say: the recorded place stands.
        if is_lost_directory(base):
            return None
        # A repository, which holds a model around the part: it counts if the recorded place is gone.
        if not is_lost and not cls._bases_are_parts:
            return None
    try:
        revision = (holds.adapter or {}).get("revision")
        around = {} if revision is None else {"revision": revision}
        kind = PreTrainedConfig.get_config_dict(base, **around)[0].get("model_type")
        if cls._bases_are_parts or kind != cls.config_class.model_type:
            return dataclasses.replace(recorded, name_or_path=absolute_name(base), revision=revision)
        # An adapter on a model around a pretrained part names the model, whose config names the part.
        part = cls.config_class.from_pretrained(base, **around).part(cls._adapted_part)
        if not part.is_elsewhere or _is_same_place(part.name_or_path, recorded.name_or_path):
            return None
        return dataclasses.replace(recorded, name_or_path=part.name_or_path, revision=part.revision)
    except OSError:
        if is_directory or is_lost:
            raise
        return None  # no network, say; the recorded weights are the same


def check_adapter_base(model: _Model, recorded: dict[str, Any], adapter: str, folder: Path) -> None:
    """Check that this model has the pretrained weights that an adapter was trained with; warn of other settings.

    Weights in another dtype, or sharded, are compared by the repository that they were opened from. `recorded` is
    the config.json in the folder of the adapter, which messages call `adapter`.

    Raises:
        EncoderMismatchError: The adapter was trained with other weights; names both.
    """
    config = type(model.config).from_dict(recorded)
    ours = model.config.part(model._adapted_part)
    theirs = config.part(model._adapted_part)
    if theirs.checksum is not None:
        # Quantized or sharded weights, or those in another dtype, have the checksum of their record or source.
        checksum = model.describe_weights(config) or ours.checksum
        if checksum is None:
            with suppress(OSError, ValueError, RuntimeError):  # gone, or it cannot be opened
                checksum = model.find_source().checksum
        if checksum is None:
            warnings.warn(
                f"{adapter}: the weights of the base model, in {model.adapted_part.dtype}, cannot be compared with "
                f"those that the adapter was trained with ({theirs.name_or_path or 'stored with it'}); others "
                "would change results silently",
                stacklevel=4,
            )
        elif checksum != theirs.checksum:
            raise EncoderMismatchError(
                f"{adapter}: the adapter was trained with the weights of "
                f"{theirs.name_or_path if theirs.is_elsewhere else theirs.subfolder!r}, checksum "
                f"{theirs.checksum}; the base model has {checksum}. Other weights would change results silently. "
                f"Load the base model with revision={theirs.revision!r}, or load the adapter's repository with an "
                "auto class, which does so automatically"
            )
    # Fields of the library's own configs, without those of transformers, such as versions and names.
    fields = type(model.config).__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    different = []
    settings = model.config.to_dict()
    for name in sorted(fields & recorded.keys()):
        value = settings[name]
        if is_of_task(name):
            continue  # each adapter has its own
        # Compared as JSON stores them: a tuple comes back as a list.
        if not name.startswith(model._settings_without_effect_on_adapters):
            if json.loads(json.dumps(value)) != recorded[name]:
                different.append(f"{name}={value!r}, the adapter was trained with {recorded[name]!r}")
    if different:
        warnings.warn(f"{adapter}: the base model differs: {'; '.join(different)}", stacklevel=4)


def modules_left_out(model: PreTrainedModel, trained: Collection[str] | None) -> list[str]:
    """Return the paths of modules with weights of their own that are neither pretrained nor trained with an adapter.

    Without any, pretrained part and adapter are the complete model.

    Args:
        model: Model with an adapted part.
        trained: The `modules_to_save` of the adapter.
    """
    pretrained = {id(parameter) for parameter in model.adapted_part.parameters()}
    endings = tuple(f".{name}" for name in trained or ())
    left_out = []
    for path, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in pretrained]
        parts = path.split(".")
        above = [f".{'.'.join(parts[: count + 1])}" for count in range(len(parts))]
        if path and own and not any(name.endswith(endings) for name in above):
            left_out.append(path)
    return left_out


def save_with_adapter(model: _Model, directory: str | os.PathLike, left_out: Collection[str] = ()) -> None:
    """Write the config beside an adapter, and the weights that the adapter needs and no public name has.

    That is the pretrained part, in a folder of its name, or the whole model below an adapter that is no complete one
    with the part alone, in the folder `base_model`.

    Args:
        model: The model.
        directory: The directory of the adapter.
        left_out: What the adapter lacks for a complete model; then it opens on its base, which has all weights.
    """
    file = Path(directory, ADAPTER_CONFIG_NAME)
    has_part = model._adapted_part is not None and model.has_adapted_part(model.config)
    with hooks().saving(directory):
        if has_part and not left_out:
            _save_with_part(model, directory)
        else:
            _save_on_base(model, directory, left_out)
    # By which others know whose adapter it is; PEFT leaves it out where there is a task type.
    owner = {"base_model_class": type(model).__name__, "parent_library": model.__module__}
    _change_settings(file, auto_mapping=owner | STATISTICS_OF_BASE | record_of(model))
    leave_out_directories(file)
    model.save_beside(directory)


def _save_on_base(model: _Model, directory: str | os.PathLike, left_out: Collection[str]) -> None:
    """Write the config beside an adapter that opens on the model that it names, or on the copy of it stored here."""
    file = Path(directory, ADAPTER_CONFIG_NAME)
    base = _stated_base(file)
    is_named = base not in (None, getattr(model.config, "encoder_name_or_path", None))
    if is_named and not PretrainedPart(base).is_to_store:
        if left_out:
            warnings.warn(
                f"this adapter leaves out {', '.join(left_out)}; it opens only with the base model as it is now, "
                "so share that too, or train with modules_to_save=trainable_module_names(model)",
                stacklevel=5,
            )
    else:
        refuse_merged_adapters(model)
        warnings.warn(
            f"this adapter leaves out {', '.join(left_out) or 'its base model'}, and that model has no public name, "
            f"so it is stored with the adapter, in {BASE_FOLDER}; push it first and train on that, or train "
            "with modules_to_save=trainable_module_names(model)",
            stacklevel=5,
        )
        model.save_without_adapters(Path(directory, BASE_FOLDER))
        _change_settings(file, base_model_name_or_path=f"./{BASE_FOLDER}", revision=None)
    config = model.config_to_store()
    if model._adapted_part is not None and model.has_adapted_part(model.config):
        source = model.find_source()
        if source.is_elsewhere and is_directory(str(source.name_or_path)):
            # It is not named, so that readers compare the tensors of the part alone.
            checksum = tensors_checksum(_state_as_recorded(model, source))
            config.set_part(model._adapted_part, dataclasses.replace(source, checksum=checksum))
    config.save_pretrained(directory)


def _save_with_part(model: _Model, directory: str | os.PathLike) -> None:
    name = model._adapted_part
    part = model.adapted_part
    refuse_merged_adapters(part)
    source = model.find_source()
    if not source.is_elsewhere or source.is_to_store:
        if source.is_elsewhere and is_directory(str(source.name_or_path)):
            tell_stored(model, name, source.name_or_path)
        state = _state_as_recorded(model, source)
        model.save_part(state, Path(directory) / name)
        source = dataclasses.replace(source, stored=True, subfolder=name, checksum=tensors_checksum(state))
    config = model.config_to_store()
    if source.is_elsewhere or source.stored:
        config.set_part(name, source)
    # A record in the config leads from the adapter to its base; PEFT's own file may name another place.
    config.save_pretrained(directory)
    if model._bases_are_parts and source.is_elsewhere:
        _name_base(model, source, Path(directory, ADAPTER_CONFIG_NAME))


def _state_as_recorded(model: _Model, source: PretrainedPart) -> dict[str, torch.Tensor]:
    """Return the weights of the pretrained part, as they were recorded if they are quantized or rounded here."""
    part = model.adapted_part
    here = None if is_quantized(part) else own_state(part)
    # Of weights that other processes have a share of, this one alone saves.
    if here is not None and source.is_elsewhere and not all(map(is_local, here.values())):
        here = None
    if source.is_elsewhere:
        if here is not None and part.dtype == model.stored_dtype(model.config):
            return here
        config = model.config_to_store()
        config.set_part(model._adapted_part, source)
        return own_state(model.open_part(config, {}))
    if here is not None and source.checksum in (None, tensors_checksum(here)):
        return here
    # Stored with the model that was opened.
    if model.name_or_path and source.checksum is not None:
        with suppress(OSError, ValueError, RuntimeError):
            state = own_state(type(model).from_pretrained(model.name_or_path).adapted_part)
            if tensors_checksum(state) == source.checksum:
                return state
    if here is None:
        raise ValueError(
            f"the quantized {model._adapted_part} has weights of no repository; expected full weights to store"
        )
    return here


def _stated_base(file: Path) -> str | None:
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return settings.get("base_model_name_or_path") or None


def _change_settings(file: Path, **changes: Any) -> None:
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8")) | changes
        file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _name_base(model: _Model, source: PretrainedPart, file: Path) -> None:
    """Let adapters name the source as their base model, where they still name that of an earlier one."""

    def is_earlier(base: str | None) -> bool:
        return bool(base) and not _is_same_place(str(base), str(source.name_or_path))

    for config in getattr(model, "peft_config", {}).values():
        if is_earlier(config.base_model_name_or_path):
            config.base_model_name_or_path = source.name_or_path
            config.revision = source.revision
    if is_earlier(_stated_base(file)):
        _change_settings(file, base_model_name_or_path=source.name_or_path, revision=source.revision)


def _add_adapter(
    model: PreTrainedModel,
    name: str,
    hub: dict[str, Any],
    ignore_mismatched_sizes: bool,
    task: Task | None = None,
) -> dict[str, list[Any]]:
    """Load an adapter into a model, in place, for inference, and return what transformers calls the loading info.

    `model.load_adapter` of transformers supports fewer methods than PEFT (neither VeRA nor the vectors of DoRA).
    """
    # Here, since models without adapters open without PEFT.
    from peft import PeftConfig, PeftModel

    folder = os.fspath(adapter_folder(name, hub))
    with stored_settings(name):
        config = PeftConfig.from_pretrained(folder)
        # Loaded for use: nothing is trained until the caller asks for it.
        config.inference_mode = True
        config.base_model_name_or_path = located(config.base_model_name_or_path, folder)
        adapted = PeftModel(model, config)
    if task is not None:
        take_task(model, name, "default", task, config.modules_to_save)
    mismatched = load_adapter_weights(adapted, name, folder, ignore_mismatched_sizes=ignore_mismatched_sizes)
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": mismatched}


def load_adapter_weights(
    adapted: nn.Module,
    name: str,
    folder: str,
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
) -> list[tuple[str, Any, Any]]:
    """Load stored weights into an adapter that a model has already, all of them, and in their own precision.

    Args:
        adapted: The model.
        name: What the adapter is called in errors.
        folder: Directory with its weights.
        adapter_name: Its name in the model.
        ignore_mismatched_sizes: Whether tensors of another size are left out.

    Returns:
        Names of tensors of another size, with the stored and the expected size.

    Raises:
        ValueError: The adapter lacks weights, or holds others than its config asks for; names them.
    """
    from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    with weights_of(name):
        weights = _named_as_in(adapted, load_peft_weights(folder, device="cpu"))
        # PEFT would load what fits and leave the rest as it was initialized.
        expected = get_peft_model_state_dict(adapted, adapter_name=adapter_name, save_embedding_layers=False)
        missing = sorted(expected.keys() - weights.keys())
        if missing:
            raise ValueError(f"{name}: the adapter lacks {listed(missing)}, which it has to hold by its config")
        unused = sorted(weights.keys() - expected.keys())
        if unused:
            raise ValueError(f"{name}: the adapter holds {listed(unused)}, for which the model has no place")
        whole = sorted(
            key for key in weights if expected[key].dtype.is_floating_point > weights[key].dtype.is_floating_point
        )
        if whole:
            raise ValueError(f"{name}: stores {listed(whole)} as whole numbers; expected floats")
        mismatched = []
        for key, tensor in sorted(weights.items()):
            if tensor.shape != expected[key].shape:
                mismatched.append((key, tensor.shape, expected[key].shape))
        if mismatched and not ignore_mismatched_sizes:
            key, ours, theirs = mismatched[0]
            raise ValueError(
                f"{name}: stores {key} with the shape {tuple(ours)}, and the model has {tuple(theirs)}, which is for "
                f"{described(task_of(adapted.config))}; expected the {CONFIG_NAME} that the adapter was saved with"
            )
        set_peft_model_state_dict(
            adapted, weights, adapter_name=adapter_name, ignore_mismatched_sizes=ignore_mismatched_sizes
        )
        keep_stored_precision(adapted, weights, adapter_name)
    return mismatched


def _named_as_in(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return stored weights by their names in a model, which without PeftModel around it has them without prefix."""
    prefix = "base_model.model."
    if any(key.startswith(prefix) for key, _ in model.named_parameters()):
        return weights
    named = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    # What a PeftModel shares among its layers is drawn again from the seed of the config (RandLoRA).
    named = {key: tensor for key, tensor in named.items() if not key.startswith("base_model.")}
    # A model without a head opens what was saved around one with a head.
    inside = f"{getattr(model, 'base_model_prefix', '')}."
    own = [key for key, _ in model.named_parameters()]
    if any(key.startswith(inside) for key in named) and not any(key.startswith(inside) for key in own):
        named = {key.removeprefix(inside): tensor for key, tensor in named.items() if key.startswith(inside)}
    return named


def check_adapter_to_load(model: _Model, name: str | os.PathLike, hub: dict[str, Any]) -> Task | None:
    """Check an adapter before it is loaded into a model, so that a model of other weights stays as it is.

    Args:
        model: The model, with or without other adapters.
        name: Directory or repository of the adapter.
        hub: Arguments of `from_pretrained` that find files.

    Returns:
        What it was trained for; None if nothing is known, or that of the model itself.

    Raises:
        OSError: It holds folders of adapters, or no weights.
        EncoderMismatchError: It was trained with other pretrained weights than this model has.
        ValueError: Its settings cannot be read, or the weights of the model are offloaded: PEFT would lose the
            adapter's.
    """
    refuse_folder_of_adapters(Path(name, hub.get("subfolder") or ""))
    # Modules that PEFT copies to train them would get the weights back in every call that accelerate keeps.
    for path, module in model.named_modules():
        if hasattr(module, "_hf_hook") and any(weight.is_meta for weight in module.parameters(recurse=False)):
            raise ValueError(f"{name}: the base model's weights are offloaded, such as {path}")
    adapter = contents_of(name, hub).adapter or {}
    mapping = adapter.get("auto_mapping")
    # Of those of other programs nothing is known.
    if isinstance(mapping, dict) and not mapping.items() >= STATISTICS_OF_BASE.items():
        if str(mapping.get("parent_library")).partition(".")[0] == __name__.partition(".")[0]:
            warn_of_moved_statistics(model, os.fspath(name), adapter.get("modules_to_save") or ())
    # What the adapter was trained on is recorded there; without it, nothing can be compared.
    found = find_file(name, CONFIG_NAME, hub)
    task = stored_task(model, name, hub)
    if found is None:
        return task
    if getattr(model, "_adapted_part", None) is not None and model.has_adapted_part(model.config):
        with stored_settings(found):
            recorded = json.loads(Path(found).read_text(encoding="utf-8"))
        check_adapter_base(model, recorded, os.fspath(name), Path(found).parent)
    return task


def warn_of_another_base(model: _Model, base: str | None) -> None:
    """Warn if an adapter that is given as tensors names a base model that this one was not opened from."""
    if not base or getattr(model, "_adapted_part", None) is None or not model.has_adapted_part(model.config):
        return
    places = [model.name_or_path, model.base_model.name_or_path, model.config.part(model._adapted_part).name_or_path]
    if not any(place and _is_same_place(base, place) for place in places):
        warnings.warn(
            f"the adapter names {base} as its base model, and this one was opened from {places[-1] or places[0]!r}; "
            "tensors alone have no record of the weights of their base, and others would change results silently",
            stacklevel=4,
        )


def cast_base(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Cast a model that is about to get an adapter, whose own weights keep the precision that they were trained in."""
    if dtype is None or not type(model)._has_single_dtype:
        return
    if not is_quantized(model):
        model.to(dtype)
        return
    # transformers refuses to cast a quantized model: its packed weights are whole numbers, and stay.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def keep_stored_precision(model: nn.Module, weights: dict[str, torch.Tensor], adapter_name: str = "default") -> None:
    """Give an adapter the weights that are stored where loading has rounded them to the dtype of the base model.

    PEFT makes weights in half precision float32 only in the layers that it adds: modules that are trained in full,
    and norms of LN tuning, are copies of those of the base, and stored values would be rounded to its dtype.

    Args:
        model: Model with the adapter, which has been loaded.
        weights: What is stored, by the names of `get_peft_model_state_dict`.
        adapter_name: Name of the adapter in the model.
    """
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict

    weights = _named_as_in(model, weights)
    loaded = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    # What PEFT returns are other objects with the same memory as the tensors of the model.
    owned = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    for key, stored in weights.items():
        found = loaded.get(key)
        if found is None or found.is_meta or found.shape != stored.shape or not stored.is_floating_point():
            continue
        if not found.is_floating_point():
            continue
        # Also where PEFT has rounded them and made them float32 again, and values that rounding happens to keep.
        is_rounded = torch.promote_types(found.dtype, stored.dtype) != found.dtype
        if is_rounded or not torch.equal(found.cpu().double(), stored.cpu().double()):
            tensor = owned.get(found.data_ptr())
            if tensor is not None:
                # The parameter stays the same object, trained or not as it was.
                tensor.data = stored.to(tensor.device)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            copies, original = module.modules_to_save, module.original_module
        elif isinstance(module, LNTuningLayer):
            copies, original = module.ln_tuning_layers, module.base_layer
        else:
            continue
        # Of the same dtype they take what the original takes, such as places of points in full precision.
        if adapter_name in copies and _dtype_of(copies[adapter_name]) != _dtype_of(original):
            compute_in_own_dtype(copies[adapter_name])


def compute_in_own_dtype(module: nn.Module) -> None:
    """Let a module take inputs of any floating-point dtype, and return outputs of the same one."""
    if _cast_inputs in module._forward_pre_hooks.values():
        return
    module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
    module.register_forward_hook(_cast_outputs, with_kwargs=True)


# Functions of this module, so that models with these hooks are copied and pickled.


def _cast_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    dtype = _dtype_of(module)
    inputs = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.is_floating_point()]
    module._dtype_outside = inputs[0].dtype if inputs else dtype
    return _cast_floats(args, dtype), _cast_floats(kwargs, dtype)


def _cast_outputs(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
    return _cast_floats(outputs, module._dtype_outside)


def _dtype_of(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first floating-point weight of a module; None without one."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)


def _cast_floats(values: Any, dtype: torch.dtype | None) -> Any:
    """Cast the floating-point tensors in nested containers; without a dtype they are returned as they are."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return values if dtype is None else tree_map_only(torch.Tensor, cast, values)


def _is_same_place(base: str, recorded: str) -> bool:
    """Return whether two names are of one place; a relative one was stated in the folder where it was trained."""
    if base == recorded or os.path.normpath(recorded).endswith(os.sep + os.path.normpath(base)):
        return True
    return os.path.isdir(base) and os.path.isdir(recorded) and os.path.samefile(base, recorded)
