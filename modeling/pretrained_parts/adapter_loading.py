"""Load models from repositories that hold only an adapter and a config."""

import copy
import dataclasses
import os
import warnings
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

from hf_any3d.modeling.config_checks import read_settings, stored_settings
from hf_any3d.modeling.pretrained_parts.loading import (
    apply_settings,
    built_on_meta,
    class_of_saved,
    dtype_named,
    is_quantized,
    refuse_non_finite,
    single_device,
)
from hf_any3d.modeling.pretrained_parts.mixin import HUB_ARGUMENTS, PretrainedPartsMixin, refuse_merged_adapters
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.modeling.pretrained_parts.stored_adapters import (
    load_adapter_into,
    refuse_folder_of_adapters,
    refuse_foreign_adapters,
    refuse_odd_weights,
)
from hf_any3d.modeling.pretrained_parts.tensors import is_local, own_state, tensors_checksum


class AdapterLoadingMixin(PretrainedPartsMixin):
    """For models whose repositories may hold only a PEFT adapter and a config that names its pretrained weights.

    `from_pretrained` then builds the model around the pretrained part that the config names and loads the adapter and
    all that was trained with it; a base class also loads the repository of a model with a head, without the head. A
    part that no repository holds, because it was changed or never saved, is stored in a folder next to the adapter.
    """

    # Name of the part that adapters are trained on, in the config and as a folder next to the adapter.
    _adapted_part: ClassVar[str]
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
        raise NotImplementedError(f"{type(self).__name__} must define adapted_part")

    @classmethod
    def open_part(cls, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any) -> PreTrainedModel:
        """Load the pretrained part from the repository that the config names, and check its weights.

        Args:
            config: The model's config.
            hub: `token`, `cache_dir` and the like.
            **loading: `dtype`, `attn_implementation`, `device_map` and `quantization_config`; any may be None.

        Raises:
            EncoderMismatchError: If the weights are not the recorded ones.
        """
        raise NotImplementedError(f"{cls.__name__} must define open_part")

    @classmethod
    def open_stored_part(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Load the pretrained part from a folder next to an adapter, otherwise as `open_part` does."""
        raise NotImplementedError(f"{cls.__name__} must define open_stored_part")

    @classmethod
    def build_around(cls, part: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the model around its pretrained part; everything else is untrained."""
        raise NotImplementedError(f"{cls.__name__} must define build_around")

    @classmethod
    def stored_dtype(cls, config: PreTrainedConfig) -> torch.dtype:
        """Return the dtype in which `save_with_adapter` stored the part, the only one in which checksums compare."""
        return torch.float32

    def find_source(self) -> PretrainedPart:
        """Return the record of the pretrained part, which is elsewhere if a repository has its present weights."""
        raise NotImplementedError(f"{type(self).__name__} must define find_source")

    def save_part(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the pretrained part for `open_stored_part`, with the weights `state`, without adapters."""
        raise NotImplementedError(f"{type(self).__name__} must define save_part")

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
        """Build the model of an adapter's repository, without the adapter.

        Args:
            name: Directory or hub repository of the adapter.
            config: The config stored with it.
            hub: `revision`, `token`, `cache_dir` and the like.
            **loading: `dtype`, `attn_implementation`, `device_map` and `quantization_config` of the pretrained part.

        Raises:
            EncoderMismatchError: If the pretrained weights differ from those that the adapter was trained with.
        """
        with stored_settings(name):
            recorded = config.part(cls._adapted_part)
            if recorded.is_elsewhere:
                # These two say where the adapter is, not where its pretrained part is.
                hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
                return cls.build_around(cls.open_part(config, hub, **loading), config)
            folder = recorded.subfolder or cls._adapted_part
            place, found = adapter_subfolder(name, hub, folder)
            stored_dtype = cls.stored_dtype(config)  # loading may change the config
            model = cls.build_around(cls.open_stored_part(place, config, found, **loading), config)
            checksum = model.checksum_in_memory(stored_dtype)
            if recorded.checksum is not None and checksum not in (None, recorded.checksum):
                raise EncoderMismatchError(
                    f"{name}: the pretrained weights in {folder}/ have checksum {checksum}; expected "
                    f"{recorded.checksum}, that of the weights that the adapter was trained with"
                )
            return model

    def checksum_in_memory(self, dtype: torch.dtype) -> str | None:
        """Return the checksum of the part's tensors; None if it is quantized, sharded or in another dtype."""
        part = self.adapted_part
        if is_quantized(part) or part.dtype != dtype:
            return None
        state = own_state(part)
        return tensors_checksum(state) if all(map(is_local, state.values())) else None

    def describe_weights(self, config: PreTrainedConfig) -> str | None:
        """Return the checksum of the pretrained part in the kind that a config has; another text if they differ.

        Args:
            config: Config stored with an adapter.

        Returns:
            None if they cannot be compared.
        """
        return self.checksum_in_memory(self.stored_dtype(config))

    def check_adapter_base(self, recorded: dict[str, Any], adapter: str) -> None:
        """Check that this model has the pretrained weights that an adapter was trained with.

        Weights in another dtype, or sharded, are compared by the repository that they were opened from. Where nothing
        can be compared, as for quantized weights without a record, a warning says so.

        Args:
            recorded: The config.json stored with the adapter.
            adapter: Name of the adapter's repository, for messages.

        Raises:
            EncoderMismatchError: If the weights differ.
        """
        config = type(self.config).from_dict(recorded)
        ours, theirs = self.config.part(self._adapted_part), config.part(self._adapted_part)
        if theirs.checksum is None:
            return
        # Quantized or sharded weights, or those in another dtype, have the checksum of their record or source.
        found = self.describe_weights(config) or ours.checksum or self._checksum_of_source()
        if found is None:
            warnings.warn(
                f"{adapter}: the base model's weights, in {self.adapted_part.dtype}, cannot be compared with those "
                f"that the adapter was trained with ({theirs.name_or_path or 'stored with it'}); others would change "
                "results silently",
                UserWarning,
                stacklevel=5,
            )
            return
        if found == theirs.checksum:
            return
        source = f"the weights in {theirs.subfolder or self._adapted_part}/"
        if theirs.is_elsewhere:
            source = f"the weights of {theirs.name_or_path!r}"
        raise EncoderMismatchError(
            f"{adapter}: the adapter was trained with {source}, checksum {theirs.checksum}; the base model has "
            f"{f'those of {ours.name_or_path!r}, ' if ours.is_elsewhere else ''}{found}. Other weights would change "
            f"results silently. Load the base model with revision={theirs.revision!r}, or load the adapter's "
            "repository with an auto class, which does so automatically"
        )

    def _checksum_of_source(self) -> str | None:
        """Return the checksum of the repository that has these weights, rounded to another dtype; None if none has."""
        try:
            return self.find_source().checksum
        except (OSError, ValueError, RuntimeError):  # gone, or it cannot be opened
            return None

    def save_with_adapter(self, directory: str | os.PathLike) -> None:
        """Write the config, and the pretrained part if no repository holds its weights.

        Raises:
            ValueError: If an adapter is temporarily merged into the part, or if the part has to be stored but was
                loaded quantized.
        """
        name, part = self._adapted_part, self.adapted_part
        refuse_merged_adapters(part)
        source = self.find_source()
        if not source.is_elsewhere:
            if is_quantized(part):
                raise ValueError(
                    f"the weights of the quantized {name} are in no repository; expected a model that was opened with "
                    "a quantization_config, or full weights to store next to the adapter"
                )
            state = own_state(part)
            self.save_part(state, Path(directory) / name)
            source = dataclasses.replace(source, stored=True, subfolder=name, checksum=tensors_checksum(state))
        config = self.config_to_store()
        config.set_part(name, source)
        config.save_pretrained(directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Load a model as `PretrainedPartsMixin.from_pretrained` does, or from an adapter's repository.

        Raises:
            FileNotFoundError: If the name looks like a path, and nothing is there.
            OSError: If the hub may not be used, and the repository is not in its cache.
            EncoderMismatchError: If the pretrained weights differ from those that the model was trained with.
            ValueError: If weights of the saved model are missing or not finite; the message names them.
            TypeError: If an argument is unknown.
        """
        name = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        given = {key: value for key, value in hub.items() if value is not None}
        if name is not None:
            refuse_folder_of_adapters(Path(name, hub.get("subfolder") or ""))
        adapter = None if name is None else find_adapter_config_file(name, **given)
        rest = {key: value for key, value in kwargs.items() if key not in hub}
        # An adapter without a config names its base model; with a config and weights it is part of a full model; with
        # a config alone the model is built around its pretrained part.
        if adapter is not None and not _contains(name, CONFIG_NAME, hub):
            return cls._from_base_of_adapter(os.fspath(name), adapter, given, *args, **rest)
        if adapter is None or any(_contains(name, file, hub) for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
            return super().from_pretrained(name, *args, **kwargs)
        return cls._from_adapter_repository(os.fspath(name), hub, **rest)

    @classmethod
    def _from_base_of_adapter(
        cls, name: str, adapter: str, hub: dict[str, Any], *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """Load the model that an adapter without a config names as its base, and the adapter into it."""
        refuse_foreign_adapters(name, hub)
        settings = read_settings(adapter)
        base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
        around = {key: hub[key] for key in ("cache_dir", "force_download", "local_files_only", "token") if key in hub}
        around |= {} if revision is None else {"revision": revision}
        kind = PreTrainedConfig.get_config_dict(base, **around)[0].get("model_type") if base else None
        if kind != cls.config_class.model_type:
            raise ValueError(
                f"{adapter}: names {base!r} as its base model{f', a {kind}' if kind else ''}, and not the "
                f"{cls.__name__} that it was trained on; build that again and open the adapter with "
                "PeftModel.from_pretrained(model, …), or save it with modules_to_save=trainable_module_names(model)"
            )
        adapter_kwargs = {"_adapter_model_path": name} | {k: hub[k] for k in hub if k in ("revision", "subfolder")}
        return cls.from_pretrained(base, *args, adapter_kwargs=adapter_kwargs, **around, **kwargs)

    def load_adapter(self, peft_model_id: str | os.PathLike | None = None, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter as transformers does, after checks of its settings and weights.

        Raises:
            ValueError: If they are damaged or not finite, or it makes PEFT fetch others.
        """
        if peft_model_id is None:
            return super().load_adapter(peft_model_id, *args, **kwargs)
        given = kwargs.get("adapter_kwargs") or {}
        hub = {key: given[key] for key in HUB_ARGUMENTS if given.get(key) is not None}
        refuse_foreign_adapters(os.fspath(peft_model_id), hub)
        refuse_odd_weights(os.fspath(peft_model_id), hub)
        with stored_settings(peft_model_id):
            loaded = super().load_adapter(peft_model_id, *args, **kwargs)
        refuse_non_finite(self, os.fspath(peft_model_id))
        return loaded

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
        apply_settings(cls, config, overrides, "a repository that holds an adapter")
        dtype = dtype_named(dtype or torch_dtype)
        # Settings that contradict each other are found before gigabytes are fetched.
        built_on_meta(class_of_saved(cls, config), config, name)
        model = class_of_saved(cls, config).build_for_adapter(
            name,
            config,
            hub,
            dtype=dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            quantization_config=quantization_config,
        )
        if not isinstance(model.base_model, cls) and not isinstance(model, cls):
            raise ValueError(f"{name}: holds a {type(model).__name__}, which {cls.__name__} cannot open")
        given = {key: value for key, value in hub.items() if value is not None}
        info = load_adapter_into(model, name, given, ignore_mismatched_sizes)
        model._hf_peft_config_loaded = True
        refuse_non_finite(model, name)
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
        """Save as `PretrainedPartsMixin.save_pretrained` does, with the config next to a loaded adapter.

        Raises:
            ValueError: If a quantized part changed, which cannot be stored.
        """
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


def adapter_subfolder(name: str, hub: dict[str, Any], folder: str) -> tuple[str, dict[str, Any]]:
    """Return `from_pretrained` arguments for a part that is stored in a folder of an adapter's repository.

    With `subfolder` of a local directory, transformers would find the adapter above and load it into the part.

    Args:
        name: Directory or hub repository of the adapter.
        hub: `revision`, `subfolder`, `token` and the like.
        folder: Name of the folder.
    """
    path = "/".join(part for part in (hub.get("subfolder"), folder) if part)
    if not os.path.isdir(name):
        return name, hub | {"subfolder": path}
    return os.path.join(name, path), {key: value for key, value in hub.items() if key != "subfolder"}


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
