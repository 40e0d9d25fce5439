"""Load models from repositories that hold only an adapter and a config."""

import copy
import dataclasses
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.pretrained_parts.loading import (
    HUB_ARGUMENTS,
    apply_settings,
    class_of_saved,
    dtype_named,
    is_quantized,
    listed,
    single_device,
    weights_of,
)
from hf_any3d.modeling.pretrained_parts.mixin import PretrainedPartsMixin, refuse_merged_adapters
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart, absolute_name
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.modeling.pretrained_parts.tensors import is_local, own_state, tensors_checksum

# As PEFT calls them, which models without adapters open without.
SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME = "adapter_model.safetensors", "adapter_model.bin"


def refuse_folder_of_adapters(folder: str | os.PathLike) -> None:
    """Raise an OSError that names them if a directory holds no model or adapter itself, but folders of adapters."""
    folder = Path(folder)
    adapters = sorted(folder.glob(f"*/{ADAPTER_CONFIG_NAME}"))
    # PEFT saves several adapters of a model as folders beside each other.
    if adapters and not (folder / CONFIG_NAME).is_file() and not (folder / ADAPTER_CONFIG_NAME).is_file():
        names = ", ".join(path.parent.name for path in adapters)
        raise OSError(f"{folder}: holds no model, but folders with the adapters {names}; open {adapters[0].parent}")


def refuse_adapter_without_weights(folder: str | os.PathLike) -> None:
    """Raise an OSError if a directory holds the config of an adapter alone; PEFT would look it up on the hub."""
    files = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
    if Path(folder, ADAPTER_CONFIG_NAME).is_file() and not any(Path(folder, file).is_file() for file in files):
        raise OSError(f"{folder}: lacks {files[0]}, the weights of the adapter whose {ADAPTER_CONFIG_NAME} it holds")


class AdapterLoadingMixin(PretrainedPartsMixin):
    """For models whose repositories may hold only a PEFT adapter and a config that names its pretrained weights.

    `from_pretrained` then builds the model around the pretrained part that the config names and loads the adapter and
    all that was trained with it; a base class also loads the repository of a model with a head, without the head. A
    part that no repository holds, because it was changed or never saved, is stored in a folder next to the adapter.
    """

    # Name of the part that adapters are trained on, in the config and as a folder next to the adapter.
    _adapted_part: ClassVar[str]
    # Whether adapters name the part itself as their base model, and not a model around it.
    _bases_are_parts: ClassVar[bool] = False
    # Prefixes of config fields that do not affect what an adapter does.
    _settings_without_effect_on_adapters: ClassVar[tuple[str, ...]] = ("parts",)
    # Whether `dtype` applies to the full model, or only to its pretrained weights.
    _has_single_dtype: ClassVar[bool] = False

    # What each system defines.

    @classmethod
    def has_adapted_part(cls, config: PreTrainedConfig) -> bool:
        """Return whether a model of this config has a pretrained part that adapters are trained on."""
        return True

    @property
    def adapted_part(self) -> PreTrainedModel:
        """The pretrained part that adapters are trained on."""
        raise NotImplementedError

    @classmethod
    def open_part(cls, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any) -> PreTrainedModel:
        """Load the recorded pretrained part; `hub` and `loading` are arguments of `from_pretrained`."""
        raise NotImplementedError

    @classmethod
    def open_stored_part(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Load the pretrained part from a folder next to an adapter, otherwise as `open_part` does."""
        raise NotImplementedError

    @classmethod
    def build_around(cls, part: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the model around its pretrained part; everything else is untrained."""
        raise NotImplementedError

    @classmethod
    def stored_dtype(cls, config: PreTrainedConfig) -> torch.dtype:
        """Return the dtype in which `save_with_adapter` stored the part, the only one in which checksums compare."""
        return torch.float32

    def find_source(self) -> PretrainedPart:
        """Return the record of the pretrained part, which is elsewhere if a repository has its present weights."""
        raise NotImplementedError

    def save_part(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the pretrained part for `open_stored_part`, with the weights `state`, without adapters."""
        raise NotImplementedError

    def config_to_store(self) -> PreTrainedConfig:
        """Return a copy of the config to store with an adapter."""
        config = copy.deepcopy(self.config)
        quantizer = getattr(self, "hf_quantizer", None)
        if quantizer is not None and not quantizer.pre_quantized:
            del config.quantization_config  # a loading option, not a property of the weights
        return config

    # What all share.

    def reopened_state(self, name: str) -> dict[str, torch.Tensor]:
        """Load the recorded weights of the part again; see `PretrainedPartsMixin`."""
        return own_state(self.open_part(self.config, {}))

    @classmethod
    def build_for_adapter(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Build the model of an adapter's repository, without the adapter, and check its pretrained weights."""
        refuse_adapter_without_weights(Path(name, hub.get("subfolder") or ""))
        recorded, hub = config.part(cls._adapted_part), dict(hub)
        if recorded.is_elsewhere:
            if (stated := cls._stated_base(name, recorded, hub)) is not None:
                config = copy.deepcopy(config)
                config.set_part(cls._adapted_part, stated)
            # These two say where the adapter is, not where its pretrained part is.
            for key in ("revision", "subfolder"):
                hub.pop(key, None)
            return cls.build_around(cls.open_part(config, hub, **loading), config)
        folder = recorded.subfolder or cls._adapted_part
        path, place = "/".join(filter(None, (hub.get("subfolder"), folder))), name
        if os.path.isdir(name):
            # With `subfolder` of a directory, transformers would find the adapter above and load it into the part.
            place = os.path.join(name, path)
            hub.pop("subfolder", None)
        else:
            hub["subfolder"] = path
        stored_dtype = cls.stored_dtype(config)  # loading may change the config
        model = cls.build_around(cls.open_stored_part(place, config, hub, **loading), config)
        checksum = model.checksum_in_memory(stored_dtype)
        if recorded.checksum is not None and checksum not in (None, recorded.checksum):
            raise EncoderMismatchError(
                f"{name}: the pretrained weights in {folder}/ have checksum {checksum}; expected "
                f"{recorded.checksum}, that of the weights that the adapter was trained with"
            )
        return model

    @classmethod
    def _stated_base(cls, name: str, recorded: PretrainedPart, hub: dict[str, Any]) -> PretrainedPart | None:
        """Return where adapter_config.json says that the pretrained part is, if that is elsewhere than recorded.

        That is the address that people edit when a base has moved, as for any adapter of PEFT. Its weights are
        compared with the recorded ones like those of the recorded address.
        """
        # Without such a file, an empty text stands for no settings.
        settings = json.loads(Path(find_adapter_config_file(name, **hub) or os.devnull).read_text("utf-8") or "{}")
        base = settings.get("base_model_name_or_path")
        if not base or _is_same_place(base, recorded.name_or_path):
            return None
        is_directory = os.path.isdir(base)
        is_lost = _is_lost(recorded.name_or_path)
        if not is_directory:
            # A directory of another machine, say: the recorded place stands.
            if _is_lost(base):
                return None
            # A repository, which holds a model around the part: it counts if the recorded place is gone.
            if not is_lost and not cls._bases_are_parts:
                return None
        try:
            return cls._part_of_base(base, settings.get("revision"), recorded)
        except OSError:
            if is_directory or is_lost:
                raise
            return None  # no network, say; the recorded weights are the same

    @classmethod
    def _part_of_base(cls, base: str, revision: str | None, recorded: PretrainedPart) -> PretrainedPart | None:
        """Return the pretrained part that an adapter's base model is or has, None if it is where it was recorded."""
        around = {} if revision is None else {"revision": revision}
        kind = PreTrainedConfig.get_config_dict(base, **around)[0].get("model_type")
        if cls._bases_are_parts or kind != cls.config_class.model_type:
            return dataclasses.replace(recorded, name_or_path=absolute_name(base), revision=revision)
        # An adapter on a model around a pretrained part names the model, whose config names the part.
        part = cls.config_class.from_pretrained(base, **around).part(cls._adapted_part)
        if not part.is_elsewhere or _is_same_place(part.name_or_path, recorded.name_or_path):
            return None
        return dataclasses.replace(recorded, name_or_path=part.name_or_path, revision=part.revision)

    def checksum_in_memory(self, dtype: torch.dtype) -> str | None:
        """Return the checksum of the part's tensors; None if it is quantized, sharded or in another dtype."""
        part = self.adapted_part
        # Checksums are of the bytes that were stored.
        if is_quantized(part) or part.dtype != dtype:
            return None
        state = own_state(part)
        return tensors_checksum(state) if all(map(is_local, state.values())) else None

    def describe_weights(self, config: PreTrainedConfig) -> str | None:
        """Return the part's checksum, in the kind of a config's; None if it is unknown, another text if changed."""
        return self.checksum_in_memory(self.stored_dtype(config))

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Check that this model has the pretrained weights that an adapter was trained with; warn of other settings.

        Weights in another dtype, or sharded, are compared by the repository that they were opened from. `recorded` is
        the config.json stored with the adapter, which messages call `adapter`.

        Raises:
            EncoderMismatchError: The adapter was trained with other weights; names both.
        """
        config = type(self.config).from_dict(recorded)
        ours, theirs = self.config.part(self._adapted_part), config.part(self._adapted_part)
        if theirs.checksum is not None:
            # Quantized or sharded weights, or those in another dtype, have the checksum of their record or source.
            checksum = self.describe_weights(config) or ours.checksum
            if checksum is None:
                with suppress(OSError, ValueError, RuntimeError):  # gone, or it cannot be opened
                    checksum = self.find_source().checksum
            if checksum is None:
                warnings.warn(
                    f"{adapter}: the weights of the base model, in {self.adapted_part.dtype}, cannot be compared with "
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
        fields = type(self.config).__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
        different = []
        for name in sorted(fields & recorded.keys()):
            value = getattr(self.config, name)
            # Compared as JSON stores them: a tuple comes back as a list.
            if not name.startswith(self._settings_without_effect_on_adapters):
                if json.loads(json.dumps(value)) != recorded[name]:
                    different.append(f"{name}={value!r}, the adapter was trained with {recorded[name]!r}")
        if different:
            warnings.warn(f"{adapter}: the base model differs: {'; '.join(different)}", stacklevel=4)

    def save_with_adapter(self, directory: str | os.PathLike) -> None:
        """Write the config, and the pretrained part if no repository holds its weights."""
        name, part = self._adapted_part, self.adapted_part
        refuse_merged_adapters(part)
        source = self.find_source()
        if not source.is_elsewhere:
            if is_quantized(part):
                raise ValueError(f"the quantized {name} has weights of no repository; expected full weights to store")
            state = own_state(part)
            self.save_part(state, Path(directory) / name)
            source = dataclasses.replace(source, stored=True, subfolder=name, checksum=tensors_checksum(state))
        config = self.config_to_store()
        config.set_part(name, source)
        # A record in the config leads from the adapter to its base; PEFT's own file may name another place.
        config.save_pretrained(directory)
        if self._bases_are_parts and source.is_elsewhere:
            self._name_base(source, Path(directory, ADAPTER_CONFIG_NAME))

    def _name_base(self, source: PretrainedPart, file: Path) -> None:
        """Let adapters name the source as their base model, where they still name that of an earlier one."""

        def is_earlier(base: str | None) -> bool:
            return bool(base) and not _is_same_place(str(base), str(source.name_or_path))

        for config in getattr(self, "peft_config", {}).values():
            if is_earlier(config.base_model_name_or_path):
                config.base_model_name_or_path, config.revision = source.name_or_path, source.revision
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if is_earlier(settings.get("base_model_name_or_path")):
            settings |= {"base_model_name_or_path": source.name_or_path, "revision": source.revision}
            file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Load a model, or build it around its pretrained part; see `LibraryModelMixin.from_pretrained`."""
        name = pretrained_model_name_or_path
        if name is None:
            return super().from_pretrained(name, *args, **kwargs)
        # Arguments that find files go to every look-up, the others to the model alone.
        hub, rest = {}, {}
        for key, value in kwargs.items():
            if key not in HUB_ARGUMENTS:
                rest[key] = value
            elif value is not None:
                hub[key] = value
        refuse_folder_of_adapters(Path(name, hub.get("subfolder") or ""))
        adapter = find_adapter_config_file(name, **hub)
        # An adapter without a config names its base model; with a config and weights it is part of a full model; with
        # a config alone the model is built around its pretrained part.
        if adapter is None:
            return super().from_pretrained(name, *args, **kwargs)
        if not _contains(name, CONFIG_NAME, hub):
            return cls._from_base_of(adapter, name, hub, *args, **rest)
        if _contains(name, SAFE_WEIGHTS_NAME, hub) or _contains(name, SAFE_WEIGHTS_INDEX_NAME, hub):
            return super().from_pretrained(name, *args, **kwargs)
        return cls._from_adapter_repository(os.fspath(name), hub, **rest)

    @classmethod
    def _from_base_of(
        cls, adapter: str, name: str | os.PathLike, hub: dict[str, Any], *args: Any, **rest: Any
    ) -> PreTrainedModel:
        """Load the base model that an adapter's config file names, and the adapter at `name` into it."""
        settings = json.loads(Path(adapter).read_text(encoding="utf-8"))
        base = settings.get("base_model_name_or_path")
        # Revision and subfolder say where the adapter is; the base has a revision of its own.
        place = {key: value for key, value in hub.items() if key in ("revision", "subfolder")}
        around = {key: value for key, value in hub.items() if key not in place}
        if settings.get("revision") is not None:
            around["revision"] = settings["revision"]
        # The type is compared before anything is downloaded.
        kind = PreTrainedConfig.get_config_dict(base, **around)[0].get("model_type") if base else None
        if kind != cls.config_class.model_type:
            raise ValueError(
                f"{adapter}: names {base!r} as its base model{f', a {kind}' if kind else ''}, and not the "
                f"{cls.__name__} that it was trained on; build that again and open the adapter with "
                "PeftModel.from_pretrained(model, …), or save it with "
                "modules_to_save=trainable_module_names(model)"
            )
        adapter_kwargs = {"_adapter_model_path": os.fspath(name)} | place
        return cls.from_pretrained(base, *args, adapter_kwargs=adapter_kwargs, **around, **rest)

    @classmethod
    def _from_adapter_repository(
        cls,
        name: str,
        hub: dict[str, Any],
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
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub)
        config = copy.deepcopy(config)
        apply_settings(cls, config, overrides)
        dtype = dtype_named(dtype or torch_dtype)
        loading = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map}
        with stored_settings(name):
            # Of the class that was saved, as the adapter has weights of its head too.
            saved_class = class_of_saved(cls, config)
            model = saved_class.build_for_adapter(
                name, config, hub, **loading, quantization_config=quantization_config
            )
        if not isinstance(model.base_model, cls) and not isinstance(model, cls):
            raise ValueError(f"{name}: holds a {type(model).__name__}, which {cls.__name__} cannot open")
        info = _add_adapter(model, name, hub, ignore_mismatched_sizes)
        model._hf_peft_config_loaded = True
        model.name_or_path = name
        if cls._has_single_dtype and dtype is not None:
            model.to(dtype)
        if device_map is not None:
            model.to(single_device(device_map))
        if not isinstance(model, cls):
            # The repository has a head, and its base model was asked for: that keeps the adapter.
            base = model.base_model
            base.peft_config, base._hf_peft_config_loaded = model.peft_config, True
            model = base
        return (model.eval(), info) if output_loading_info else model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as `PretrainedPartsMixin.save_pretrained` does, with the config next to a loaded adapter."""
        if not getattr(self, "_hf_peft_config_loaded", False) or not self.has_adapted_part(self.config):
            super().save_pretrained(save_directory, **kwargs)
            return
        # A base model loaded from the repository of a model with a head is saved under its own class.
        self.config.architectures = [type(self).__name__]
        if kwargs.get("is_main_process", True):
            self.save_with_adapter(save_directory)
        # Past the class that would store the part: `save_with_adapter` has, and transformers saves the adapter alone.
        super(PretrainedPartsMixin, self).save_pretrained(save_directory, **kwargs)


def opens_from_adapter(model_class: type, config: PreTrainedConfig) -> bool:
    """Return whether repositories that hold only an adapter and a config open as models of a class and config."""
    return issubclass(model_class, AdapterLoadingMixin) and model_class.has_adapted_part(config)


def _add_adapter(
    model: PreTrainedModel, name: str, hub: dict[str, Any], ignore_mismatched_sizes: bool
) -> dict[str, list[Any]]:
    """Load an adapter into a model, in place, for inference, and return what transformers calls the loading info.

    `model.load_adapter` of transformers supports fewer methods than PEFT (neither VeRA nor the vectors of DoRA).
    """
    # Here, since models without adapters open without PEFT.
    from peft import PeftConfig, PeftModel
    from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    with stored_settings(name):
        config = PeftConfig.from_pretrained(name, **hub)
        # Loaded for use: nothing is trained until the caller asks for it.
        config.inference_mode = True
        adapted = PeftModel(model, config)
    with weights_of(name):
        weights = load_peft_weights(name, device="cpu", **hub)
        # PEFT would load what fits and leave the rest as it was initialized.
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if missing := sorted(expected.keys() - weights.keys()):
            raise ValueError(f"{name}: the adapter lacks {listed(missing)}, which it has to hold by its config")
        if unused := sorted(weights.keys() - expected.keys()):
            raise ValueError(f"{name}: the adapter holds {listed(unused)}, for which the model has no place")
        if whole := sorted(
            key for key in weights if expected[key].dtype.is_floating_point > weights[key].dtype.is_floating_point
        ):
            raise ValueError(f"{name}: stores {listed(whole)} as whole numbers; expected floats")
        mismatched = []
        for key, tensor in sorted(weights.items()):
            if tensor.shape != expected[key].shape:
                mismatched.append((key, tensor.shape, expected[key].shape))
        set_peft_model_state_dict(adapted, weights, ignore_mismatched_sizes=ignore_mismatched_sizes)
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": mismatched}


def _is_lost(name: str) -> bool:
    """Return whether a name is that of a directory that is not there; another one may be a repository."""
    # Names on the hub have at most one slash.
    is_path = os.path.isabs(name) or name.startswith(".") or name.count(os.sep) > 1
    return is_path and not os.path.isdir(name)


def _is_same_place(base: str, recorded: str) -> bool:
    """Return whether two names are of one place; a relative one was stated in the folder where it was trained."""
    if base == recorded or os.path.normpath(recorded).endswith(os.sep + os.path.normpath(base)):
        return True
    return os.path.isdir(base) and os.path.isdir(recorded) and os.path.samefile(base, recorded)


def _contains(name: str | os.PathLike, file: str, hub: dict[str, Any]) -> bool:
    """Return whether a directory or hub repository has a file."""
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return found is not None
