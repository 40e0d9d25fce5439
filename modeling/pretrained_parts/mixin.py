"""Open and save models: under names that are checked, with or without their pretrained parts, or as adapters."""

import copy
import dataclasses
import functools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.peft import PeftAdapterMixin
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.hooks import LibraryModelHook, hooks
from hf_any3d.modeling.layers.direct_weights import keep_unpacked
from hf_any3d.modeling.layers.low_rank import INNER
from hf_any3d.modeling.pretrained_parts.adapted_part import AdaptedPartMixin, checksum_of
from hf_any3d.modeling.pretrained_parts.adapter_loading import (
    check_adapter_to_load,
    has_part_folder,
    keep_stored_precision,
    load_adapter_weights,
    modules_left_out,
    open_adapter,
    refuse_folder_of_adapters,
    refuse_merged_adapters,
    save_with_adapter,
    stated_base,
    warn_of_another_base,
    without_adapter,
)
from hf_any3d.modeling.pretrained_parts.adapter_tasks import (
    added,
    borrowing,
    ensured_switch,
    heads_for,
    recorded_task,
    showing,
    switch_of,
    take_task,
    warn_of_unknown_names,
)
from hf_any3d.modeling.pretrained_parts.contents import adapter_folder, contents_of, read_json
from hf_any3d.modeling.pretrained_parts.frozen_statistics import hold_statistics
from hf_any3d.modeling.pretrained_parts.loading import (
    HUB_ARGUMENTS,
    class_of_saved,
    is_quantized,
    keep_in_full,
    listed,
    refuse_whole_numbers,
    tell_quantized,
    weights_of,
)
from hf_any3d.modeling.pretrained_parts.record import (
    PartsConfigMixin,
    including_parts,
    is_directory,
    located,
    tell_stored,
)
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.modeling.pretrained_parts.tensors import (
    OwnTensor,
    changed_since_loading,
    differing,
    own_modules,
    own_tensors,
    remember_weights,
)


def _asks_for_our_peft(name: str) -> Callable:
    """Return a copy of a method of transformers for models with adapters that asks for the PEFT of this package.

    transformers 5.24 asks for 0.22, which is not released, with the same code as 5.23.
    """
    method = getattr(PeftAdapterMixin, name)
    names = {**method.__globals__, "MIN_PEFT_VERSION": "0.20.0"}
    copied = FunctionType(method.__code__, names, name, method.__defaults__, method.__closure__)
    copied.__kwdefaults__ = method.__kwdefaults__
    return functools.update_wrapper(copied, method)


class _PeftMethods:
    """The methods of transformers for adapters, with the PEFT that this package asks for."""

    set_adapter = _asks_for_our_peft("set_adapter")
    disable_adapters = _asks_for_our_peft("disable_adapters")
    enable_adapters = _asks_for_our_peft("enable_adapters")
    active_adapters = _asks_for_our_peft("active_adapters")
    get_adapter_state_dict = _asks_for_our_peft("get_adapter_state_dict")
    delete_adapter = _asks_for_our_peft("delete_adapter")
    add_adapter = _asks_for_our_peft("add_adapter")


class LibraryModelMixin(LibraryModelHook, AdaptedPartMixin, _PeftMethods):
    """For all `PreTrainedModel` classes, as a base class before it: how models are opened and saved.

    - Names are checked before anything is opened, and saved models are described.
    - `config.parts` records where the weights of each pretrained part come from. A part that still has these weights
      is not saved; one that was changed is stored with the model. Loading fetches the parts, checks that they are the
      recorded ones, and refuses a model that lacks weights that it was saved with, which transformers would initialize
      at random.
    - Where adapters are trained on a part, `_adapted_part`, a repository may hold only a PEFT adapter and a config.
      `from_pretrained` then builds the model around the part and loads the adapter and all that was trained with it; a
      base class also loads the repository of a model with a head, without the head. A part that no repository holds,
      because it was changed or never saved, is stored in a folder next to the adapter.
    """

    # PEFT asks by this name, of which transformers warns from 5.23 on, where the other one is new.
    is_gradient_checkpointing = getattr(
        PreTrainedModel, "is_activation_checkpointing", PreTrainedModel.is_gradient_checkpointing
    )
    # Path of each part's module in the model that owns it. Parts without a module are in no saved file.
    _part_paths: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does.

        Pretrained weights that differ from those that the model was trained with raise an EncoderMismatchError,
        missing ones of the model itself a ValueError.

        Raises:
            EncoderMismatchError: Pretrained weights differ from those that the model was trained with.
            EncoderUnavailableError: They are neither on the hub nor in the cache.
            ValueError: Weights of the model itself are missing, damaged or of another shape; names them.
        """
        name = pretrained_model_name_or_path
        hooks().check_name(name, kwargs)
        with stored_settings(name, kwargs):
            opened = cls._from_repository(name, *args, **kwargs)
        if kwargs.get("quantization_config") is not None:
            tell_quantized(opened[0] if isinstance(opened, tuple) else opened, kwargs["quantization_config"])
        return opened

    @classmethod
    def _from_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        # Arguments that find files go to every look-up, the others to the model alone.
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
        if name is not None:
            refuse_folder_of_adapters(Path(name, hub.get("subfolder") or ""))
            holds = contents_of(name, hub)
            if holds.takes_adapter(cls._adapted_part):
                rest = {key: value for key, value in kwargs.items() if key not in HUB_ARGUMENTS}
                return open_adapter(cls, holds, *args, **rest)
            if holds.adapter is not None:
                kwargs = without_adapter(kwargs)
        returns_info = kwargs.pop("output_loading_info", False)
        with weights_of(name):
            model, info = cls._from_full_repository(name, *args, output_loading_info=True, **kwargs)
        # Quantized weights are whole numbers by intent.
        if hasattr(model, "hf_quantizer"):
            keep_unpacked(model)
        elif name is not None:
            refuse_whole_numbers(model, name, hub)
        if name is not None:
            _refuse_lost_weights(model, name, info["missing_keys"], hub)
        return (model, info) if returns_info else model

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        def build() -> PreTrainedModel:
            config = kwargs.get("config")
            if not isinstance(config, PreTrainedConfig):
                hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
                config = cls.config_class.from_pretrained(name if config is None else config, **hub)
            return cls(copy.deepcopy(config))

        return super().from_pretrained(name, *args, **keep_in_full(kwargs, build=build))

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, include_encoder: bool = False, **kwargs: Any
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with a model card (`README.md`) next to the weights.

        Of pretrained parts that have a public name and did not change, the name and the commit are saved; those from a
        directory of this machine are stored. Of a model with a loaded adapter on its part, the adapter and the config
        are saved.

        Args:
            save_directory: The directory.
            include_encoder: Store the weights of all pretrained parts, so that the directory needs no other one.
            **kwargs: Arguments of `PreTrainedModel.save_pretrained`.
        """
        is_main_process = kwargs.get("is_main_process", True)
        with including_parts(include_encoder), hooks().saving(save_directory):
            if getattr(self, "_hf_peft_config_loaded", False):
                refuse_merged_adapters(self)  # before anything is written
                # The active adapter is saved, disabled or not.
                with showing(self, next(iter(self.active_adapters()), None)):
                    super().save_pretrained(save_directory, **kwargs)
                    # A base model loaded from the repository of a model with a head is saved under its own class.
                    self.config.architectures = [type(self).__name__]
                    if is_main_process:
                        save_with_adapter(self, save_directory, self._left_out())
                        self.save_beside(save_directory)
                        hooks().describe(self, save_directory, None)
                return
            if switch_of(self) is not None and not hasattr(self, "peft_config"):
                # All adapters are deleted, of which PEFT leaves the layers.
                self.save_without_adapters(save_directory, **kwargs)
            else:
                with self._parts_as_stored(is_main_process) as reopened:
                    self._keys_to_ignore_on_save = self.names_stored_elsewhere()
                    if reopened:
                        state = kwargs.pop("state_dict", None) or self.state_dict()
                        kwargs["state_dict"] = _with_full_weights(state, reopened)
                    super().save_pretrained(save_directory, **kwargs)
        if is_main_process:
            self.save_beside(save_directory)
            hooks().describe(self, save_directory, None)

    def save_beside(self, directory: str | os.PathLike) -> None:
        """Store what belongs to the model and is none of its weights, with a full model and with an adapter."""

    def save_without_adapters(self, directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the full model below its adapters, in a directory of its own; `kwargs` as for `save_pretrained`."""
        if is_quantized(self) and os.path.isdir(self.name_or_path):
            # Packed weights have names of their own, and the directory has those that they were made of.
            type(self).from_pretrained(self.name_or_path).save_pretrained(directory)
            return
        with self._parts_as_stored() as reopened:
            elsewhere = {f"{path}.{own.path}" for path, owned in self._parts_elsewhere() for own in owned}
            state = {own.name: own.tensor for own in own_tensors(self) if own.path not in elsewhere}
            state = _with_full_weights(state, reopened, adapted=False)
            has_adapters = getattr(self, "_hf_peft_config_loaded", False)
            self._keys_to_ignore_on_save = set()
            self._hf_peft_config_loaded = False  # or transformers would save them
            try:
                with showing(self, None):
                    # In the names of the model: adapters that were loaded left rules behind that would rename all
                    # weights.
                    super().save_pretrained(
                        directory, **(kwargs | {"state_dict": state, "save_original_format": False})
                    )
                    self.save_beside(directory)
            finally:
                self._hf_peft_config_loaded = has_adapters

    def push_to_hub(self, *args: Any, include_encoder: bool = False, **kwargs: Any) -> Any:
        """Push as transformers does; `include_encoder` stores the weights of all pretrained parts, too."""
        with including_parts(include_encoder):
            return super().push_to_hub(*args, **kwargs)

    def _left_out(self) -> list[str]:
        """Return the paths of modules that neither the active adapter nor the pretrained part has the weights of."""
        if self._adapted_part is None or not self.has_adapted_part(self.config):
            return []
        active = self.active_adapters()[0]
        return modules_left_out(self, getattr(self.peft_config[active], "modules_to_save", None))

    def _owns(self, name: str) -> bool:
        return name in self._part_paths and self.owns_part(name)

    def _parts_to_store(self) -> Iterator[str]:
        """Yield recorded parts that a full model is saved with: its own weights, and what has no public name."""
        if not isinstance(self.config, PartsConfigMixin):
            return
        for name in {*self._part_paths, *filter(None, [self._adapted_part])}:
            recorded = self.config.part(name)
            if recorded.is_elsewhere and name not in self._part_paths:
                yield name
            elif recorded.is_to_store:
                yield name

    @contextmanager
    def _parts_as_stored(self, is_main_process: bool = True) -> Iterator[list["_Reopened"]]:
        """Record in the configs, while a full model is saved, which parts are stored with it.

        Yields the full weights of quantized ones, opened again from where they came from.
        """
        reopened = []
        owners = [module for module in self.modules() if isinstance(module, LibraryModelMixin)]
        for owner in owners if is_main_process else ():
            if any(owner.owns_part(name) for name in owner._part_paths):
                owner.store_changed_parts()
        before = {}
        for owner in owners if is_main_process else ():
            for name in owner._parts_to_store():
                before.setdefault(id(owner.config), (owner.config, owner.config.parts))
                # With a head around its owner, the part is in another model.
                holders = [other for other in owners if other._owns(name)]
                parts = [other.get_submodule(other._part_paths[name]) for other in holders]
                checksum = None
                if parts and not is_quantized(parts[0]):
                    checksum = checksum_of(parts[0])
                elif holders and holders[0] is owner:
                    reopened.append(self._reopen(owner, name))
                source = str(owner.config.part(name).name_or_path)
                if parts and is_directory(source):
                    tell_stored(owner, name, source)
                owner.config.change_part(name, stored=True, subfolder=None, checksum=checksum)
        try:
            yield reopened
        finally:
            for config, parts in before.values():
                config.parts = parts

    def _reopen(self, owner: "LibraryModelMixin", name: str) -> "_Reopened":
        """Open the full weights of a quantized part of a model inside this one."""
        prefix = next(prefix for prefix, module in self.named_modules() if module is owner)
        path = ".".join(filter(None, (prefix, owner._part_paths[name])))
        return _Reopened(path, self.get_submodule(path), owner.part_tensors(name), owner.reopened_state(name))

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just put the repository's card here, or its empty template where there is none.
        hooks().describe(self, working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """Set the mode; below adapters, norms keep their statistics: see `frozen_statistics`."""
        super().train(mode)  # pyright: ignore[reportAttributeAccessIssue] a method of the model
        if mode:
            hold_statistics(self)  # pyright: ignore[reportArgumentType] the model
        return self

    def enable_adapters(self) -> None:
        """Enable all adapters and fully trained modules (`modules_to_save`), which transformers leaves disabled."""
        super().enable_adapters()
        from peft.utils import ModulesToSaveWrapper  # here, since models without adapters open without PEFT

        for module in self.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.enable_adapters(enabled=True)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Add an adapter as transformers does; a config that names no modules adapts and trains the default ones."""
        ensured_switch(self)
        super().add_adapter(hooks().complete_adapter(self, adapter_config), adapter_name)
        hold_statistics(self)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Set the active adapter as transformers does, and the config to the task that it was trained for.

        Modules that it did not train in full, other than another adapter, stay those of the model.

        Raises:
            ValueError: There is no such adapter, or several are of different tasks.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        if not set(names) <= set(getattr(self, "peft_config", {})):
            super().set_adapter(adapter_name)  # says so
        switch = switch_of(self)
        if switch is not None:
            switch.check_together(names)  # before any layer is switched
        from peft.functional import set_adapter  # here, since models without adapters open without PEFT

        # That of transformers fails on modules that only another adapter has trained.
        set_adapter(self, adapter_name)

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load an adapter as transformers does, after a comparison of this model with the one it was trained on.

        Its weights keep the precision that they are stored in.

        Raises:
            EncoderMismatchError: If it was trained on other pretrained weights than this model has.
            ValueError: If it lacks weights, or holds others than its config asks for.
        """
        adapter_name = adapter_name or "default"
        hub = {}
        # Given in one of two places; from_pretrained says `_commit_hash` and more, which finds no files.
        for key, value in {**kwargs, **(kwargs.get("adapter_kwargs") or {})}.items():
            if key in HUB_ARGUMENTS and value is not None:
                hub[key] = value
        name = peft_model_id
        task = None
        if name is not None:
            hooks().check_name(name, hub)
            task = check_adapter_to_load(self, name, hub)
            peft_model_id = os.fspath(adapter_folder(name, hub))
            # They have found it.
            kwargs = {key: value for key, value in kwargs.items() if key not in (*HUB_ARGUMENTS, "adapter_kwargs")}
        elif peft_config is not None:
            warn_of_another_base(self, peft_config.base_model_name_or_path)
            task = recorded_task(self, peft_config)
        is_new = adapter_name not in getattr(self, "peft_config", {})
        switch = ensured_switch(self)
        heads = {}
        settings = getattr(peft_config, "modules_to_save", None)
        if name is not None and peft_config is None:
            settings = (read_json(name, ADAPTER_CONFIG_NAME, hub) or {}).get("modules_to_save")
        if task is None:
            warn_of_unknown_names(self, name, settings)
        elif is_new:
            heads = heads_for(self, name, task, switch.own, settings)
        elif kwargs.get("hotswap", "auto") is True or getattr(self, "_hotswap_enabled", False):
            take_task(self, name, adapter_name, task, settings)
        with added(self, self, name or "tensors", adapter_name, task):
            with borrowing(self, heads):
                info = super().load_adapter(peft_model_id, adapter_name, peft_config, adapter_state_dict, **kwargs)
            if task is not None:
                switch.learn(adapter_name, task)
            if name is not None:
                config = self.peft_config[adapter_name]
                config.base_model_name_or_path = located(config.base_model_name_or_path, peft_model_id)
            # transformers leaves out some weights (of VeRA, and the vectors of DoRA), and rounds all to the base's
            # dtype.
            if is_new and peft_model_id is not None and adapter_state_dict is None:
                load_adapter_weights(self, os.fspath(name), peft_model_id, adapter_name)
            elif is_new and adapter_state_dict is not None:
                keep_stored_precision(self, adapter_state_dict, adapter_name)
        hold_statistics(self)
        return info

    # Parts whose weights are kept elsewhere.

    def part_tensors(self, name: str) -> list[OwnTensor]:
        """Return the tensors of a part that come from its own checkpoint, without adapters."""
        return own_tensors(self.get_submodule(self._part_paths[name]), bare=True)

    def changed_tensors(self, name: str) -> list[str]:
        """Return the names of a part's tensors that changed since it was loaded; all of them if that is unknown."""
        part = self.get_submodule(self._part_paths[name])
        refuse_merged_adapters(part)
        tensors = {own.name: own.tensor for own in self.part_tensors(name)}
        changed = changed_since_loading(part, tensors)
        if changed is not None:
            return changed
        # Hashes of bytes say nothing about weights in another precision; these are compared with their source, rounded
        # alike. What cannot be compared counts as changed: stored twice, weights do no harm, but lost ones do.
        try:
            changed = differing(tensors, self.reopened_state(name))
        except (OSError, ValueError, RuntimeError):
            return sorted(tensors)
        if not changed:
            remember_weights(part, tensors)
        return changed

    def store_changed_parts(self) -> None:
        """Mark parts whose weights changed as stored with the model, with a warning for each."""
        for name in self._part_paths:
            if not self.config.part(name).is_elsewhere or not (changed := self.changed_tensors(name)):
                continue
            source = self.config.part(name).name_or_path
            some = listed(changed, 3)
            if is_quantized(self.get_submodule(self._part_paths[name])):
                raise ValueError(f"the quantized {name} is no longer that of {source} ({some}), and cannot be stored")
            # The model and its base model have configs of their own, which must agree.
            for module in self.modules():
                if isinstance(module, LibraryModelMixin) and name in module._part_paths:
                    module.config.change_part(name, stored=True, checksum=None, subfolder=None)
            warnings.warn(
                f"the weights of the {name} are no longer those of {source} ({some}); they are stored with the model",
                stacklevel=3,
            )

    def names_stored_elsewhere(self) -> set[str]:
        """Return the state dict names of tensors that are not saved because their part is kept elsewhere."""
        names = set()
        for path, owned in self._parts_elsewhere():
            names |= {f"{path}.{name}" for name in _names_in_state_dict(self.get_submodule(path), owned)}
        return names

    def _parts_elsewhere(self) -> Iterator[tuple[str, list[OwnTensor]]]:
        """Yield paths and tensors of parts that are kept elsewhere, of this model and of models inside it."""
        for prefix, owner in self.named_modules():
            if isinstance(owner, LibraryModelMixin):
                for name, path in owner._part_paths.items():
                    if owner.owns_part(name) and owner.config.part(name).is_elsewhere:
                        yield ".".join(filter(None, (prefix, path))), owner.part_tensors(name)

    def expect_parts_elsewhere(self) -> None:
        """Let weights that are kept elsewhere be missing in a saved model; called at the end of `__init__`."""
        patterns = set()
        for path, tensors in self._parts_elsewhere():
            if any(own.path != own.name for own in tensors):
                # Adapters wrap what they change; their own weights are never elsewhere.
                patterns |= {rf"^{re.escape(f'{path}.{own.path}')}$" for own in tensors}
            else:
                patterns.add(rf"^{re.escape(path)}\.")
        self._keys_to_ignore_on_load_missing = patterns

    def owns_part(self, name: str) -> bool:
        """Return whether a part belongs to this model, not to a submodel, and is not disabled by its config."""
        parent, _, child = self._part_paths[name].rpartition(".")
        try:
            return self.get_submodule(parent)._modules.get(child) is not None
        except AttributeError:
            return False

    @classmethod
    def build_for_adapter(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Build the model of an adapter's repository, without the adapter, and check its pretrained weights."""
        recorded = config.part(cls._adapted_part)
        hub = dict(hub)
        if (
            recorded.stored
            and recorded.name_or_path
            and not recorded.subfolder
            and not has_part_folder(cls, name, hub)
        ):
            # A full model that was saved over the adapter stores the part as it has changed it.
            recorded = dataclasses.replace(recorded, stored=False, checksum=None)
            config = copy.deepcopy(config)
            config.set_part(cls._adapted_part, recorded)
        if recorded.is_elsewhere:
            stated = stated_base(cls, name, recorded, hub)
            if stated is not None:
                config = copy.deepcopy(config)
                config.set_part(cls._adapted_part, stated)
            # These two say where the adapter is, not where its pretrained part is.
            for key in ("revision", "subfolder"):
                hub.pop(key, None)
            return cls.build_around(cls.open_part(config, hub, **loading), config)
        folder = recorded.subfolder or cls._adapted_part
        path = "/".join(filter(None, (hub.get("subfolder"), folder)))
        place = name
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


class _Reopened(NamedTuple):
    """Full weights of a quantized part: its path in the model, the part, its own tensors, and the weights."""

    path: str
    part: PreTrainedModel
    tensors: list[OwnTensor]
    state: dict[str, torch.Tensor]


def _names_in_state_dict(part: PreTrainedModel, owned: Iterable[OwnTensor]) -> set[str]:
    """Return the state dict names of a part's tensors, and of what quantized layers keep beside them."""
    names = {own.path for own in owned}
    if is_quantized(part):
        # Its layers keep more in the state dict than parameters and buffers.
        tensors = {key for key, _ in (*part.named_parameters(), *part.named_buffers())}
        layers = tuple(own.path.rpartition(".")[0] + "." for own in own_tensors(part, bare=True))
        more = (key for key in part.state_dict().keys() - tensors if key.startswith(layers))
        names |= {key for key in more if ".lora_" not in key}
    return names


def _with_full_weights(
    state: Mapping[str, torch.Tensor], reopened: Iterable[_Reopened], adapted: bool = True
) -> dict[str, torch.Tensor]:
    """Return a state dict with the full weights of quantized parts in place of the packed ones.

    With `adapted`, weights below adapters have the names that they have there.
    """
    state = dict(state)
    for path, part, tensors, full in reopened:
        # Names of modules in the state dict, by their present ones.
        here = {module.path: module.path if adapted else module.name for module in own_modules(part)}
        packed = _names_in_state_dict(part, tensors) if adapted else set()
        for own in tensors:
            module, _, leaf = own.path.rpartition(".")
            packed.add(".".join(filter(None, (here[module], leaf))))
        for name in packed:
            state.pop(f"{path}.{name}", None)
        places = {module.name: here[module.path] for module in own_modules(part, bare=True)}
        for name, tensor in full.items():
            module, _, leaf = name.rpartition(".")
            # What was trained in the part stays as it is.
            if module in places:
                state.setdefault(".".join(filter(None, (path, places[module], leaf))), tensor)
    return state


def _refuse_lost_weights(
    model: PreTrainedModel, name: str | os.PathLike, missing: Iterable[str], hub: dict[str, Any]
) -> None:
    """Refuse a model whose files lack weights of the class that was saved, which would be initialized at random."""
    if not missing:
        return
    config = type(model).config_class.from_pretrained(name, **hub)
    saved_class = class_of_saved(type(model), config)
    # Only its names are needed: what the saved class has, the files must hold.
    with stored_settings(name), torch.device("meta"):
        saved = saved_class(config).state_dict()
    prefix = f"{type(model).base_model_prefix}."

    def base_name(key: str) -> str:
        # The name in a base model, without wrappers that a config puts around layers.
        return key.removeprefix(prefix).replace(".base_layer.", ".").replace(f".{INNER}.", ".")

    # Others are those of a new head, or of a module that an argument switched on: new, as in transformers.
    stored = {base_name(key) for key in saved}
    lost = sorted(key for key in missing if base_name(key) in stored)
    if lost:
        raise ValueError(
            f"{name}: the saved {saved_class.__name__} lacks {listed(lost)}; without them its predictions would be "
            "random. Expected the weights as they were saved"
        )


def opens_from_adapter(model_class: type, config: PreTrainedConfig) -> bool:
    """Return whether repositories that hold only an adapter and a config open as models of a class and config."""
    return issubclass(model_class, LibraryModelMixin) and model_class.has_adapted_part(config)
