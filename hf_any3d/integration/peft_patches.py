"""Changes to PEFT, as in `hf_any3d.integration.patches`: this module is imported when PEFT is, which takes a second.

Its models with adapters of ours are those of `PointCloudPeftModel`, and its auto classes open repositories of ours.
"""

import contextlib
import functools
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraModel
from peft.utils import (
    ModulesToSaveWrapper,
    get_peft_model_state_dict,
    load_peft_weights,
)
from transformers import PreTrainedModel
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.hub.names import check_name
from hf_any3d.integration.patches import (
    Patch,
    apply_patches_of,
    is_ours,
)
from hf_any3d.modeling.hooks import hooks
from hf_any3d.modeling.pretrained_parts.adapter_loading import (
    check_adapter_to_load,
    keep_stored_precision,
    refuse_merged_adapters,
    save_with_adapter,
    warn_of_another_base,
)
from hf_any3d.modeling.pretrained_parts.adapter_tasks import (
    SWITCH,
    added,
    borrowing,
    ensured_switch,
    heads_for,
    recorded_task,
    replace_heads,
    showing,
    switch_of,
    take_task,
    warn_of_unknown_names,
)
from hf_any3d.modeling.pretrained_parts.contents import adapter_folder
from hf_any3d.modeling.pretrained_parts.frozen_statistics import hold_statistics
from hf_any3d.modeling.pretrained_parts.loading import HUB_ARGUMENTS, listed
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin, opens_from_adapter
from hf_any3d.modeling.pretrained_parts.record import including_parts, is_directory, located
from hf_any3d.modeling.pretrained_parts.task_settings import Absent
from hf_any3d.modeling.pretrained_parts.task_switch import TaskSwitch
from hf_any3d.registry import MODEL_TYPES
from hf_any3d.tuners.targets import left_out_modules, with_default_modules
from hf_any3d.utils.atomic_files import usual_mode

# Model types with words between the clouds of a prompt.
_READ_CLOUDS_AND_WORDS = {name for name, kind in MODEL_TYPES.items() if "point-cloud-text-to-text" in kind.heads}
# Settings by which an adapter computes with its weights, where their shapes do not show it.
_SETTINGS_OF_COMPUTING = re.compile(r"alpha|scal|^use_|block_size|fan_in|neighbors|distances|signs|cell")
_PACKAGE = __name__.partition(".")[0]


def apply_peft_patches() -> None:
    """Apply the patches of PEFT for models and adapters that are built."""
    apply_patches_of(__name__)


class PointCloudPeftModel(PeftModel):
    """A `PeftModel` around one of our models: it saves what the model needs, and checks what it loads.

    PEFT chooses the class by the task type, so a model around one of ours becomes one of these while it is built; see
    `adapted_class`.
    """

    def train(self, mode: bool = True) -> Any:
        """Set the mode; norms below the adapter keep their statistics, also below a learned prompt."""
        super().train(mode)
        if mode:
            hold_statistics(self.get_base_model(), is_frozen=True)
        return self

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        *args: Any,
        include_encoder: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as PEFT does, with the config of the model, without which the directory does not open, and cards.

        Weights below the adapter that have no public name are stored, too; with `include_encoder` all of them.
        """
        model = cast(PreTrainedModel, self.get_base_model())
        # Adapters whose model was not loaded from a repository name the encoder as their base. Without a name it is
        # None, or an empty text before PEFT 0.21.
        encoder = getattr(model.config, "encoder_name_or_path", None)
        for config in self.peft_config.values():
            if encoder and not is_directory(encoder) and not config.base_model_name_or_path:
                config.base_model_name_or_path = encoder
                config.revision = config.revision or model.config.encoder_revision
        if isinstance(model, LibraryModelMixin) and model._adapted_part is not None:
            refuse_merged_adapters(model)  # before anything is written
            # PEFT would ask the hub whether the base model has another vocabulary, and warn without a network: these
            # models read no words, and an adapter with embeddings would not open.
            if save_embedding_layers == "auto":
                save_embedding_layers = False
        given = (safe_serialization, selected_adapters, save_embedding_layers, is_main_process, *args)
        with usual_mode(save_directory):
            super().save_pretrained(save_directory, *given, **kwargs)
        if not isinstance(model, LibraryModelMixin) or not is_main_process:
            return
        model.config.architectures = [type(model).__name__]
        names = list(selected_adapters or self.peft_config)
        for name in names:
            missing = left_out_modules(self, name) if opens_from_adapter(type(model), model.config) else []
            # PEFT saves the adapter called default in the directory itself, and others in folders of their names.
            folder = save_directory if name == "default" else f"{save_directory}/{name}"
            with including_parts(include_encoder), showing(model, name):
                save_with_adapter(model, folder, missing)
        # Again: saving may have found that a pretrained part has changed, and stored it.
        self._write_cards(save_directory, names)

    def push_to_hub(self, *args: Any, include_encoder: bool = False, **kwargs: Any) -> Any:
        """Push as PEFT does; `include_encoder` stores all weights below the adapter, too."""
        with including_parts(include_encoder):
            return super().push_to_hub(*args, **kwargs)

    def _write_cards(self, save_directory: str, names: Sequence[str]) -> None:
        """Write a card for each adapter, on top that of the default or the active one."""
        active = self.active_adapter
        model = self.get_base_model()
        # Nothing is saved in the directory itself but its card, which is then that of the active adapter.
        if "default" not in names:
            hooks().describe(self, save_directory, None)
        try:
            for name in names:
                self.active_adapter = name  # the one that is described; no layer is switched
                with showing(model, name):
                    hooks().describe(self, save_directory if name == "default" else Path(save_directory, name), None)
        finally:
            self.active_adapter = active

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write a card that describes the model instead of PEFT's template."""
        if isinstance(self.get_base_model(), LibraryModelMixin):
            hooks().describe(self, output_dir, None)
        else:
            super().create_or_update_model_card(output_dir)

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just put its template over the card.
        if isinstance(self.get_base_model(), LibraryModelMixin):
            hooks().describe(self, working_dir, repo_id)
            for name in self.peft_config:  # their examples open directories, not subfolders of a repository
                Path(working_dir, name, "README.md").unlink(missing_ok=True)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter as PEFT does, after a comparison of the base model with the one that it was trained on.

        From a directory of several adapters, as `save_pretrained` writes it, the one of this name is loaded; PEFT
        loads the one that is called default under any name.

        Raises:
            EncoderMismatchError: If it was trained on other pretrained weights than this model has.
            ValueError: If the weights of the base model are offloaded: PEFT would lose the adapter's.
        """
        check_name(model_id, kwargs)
        if Path(model_id, adapter_name, ADAPTER_CONFIG_NAME).is_file():
            model_id = Path(model_id, adapter_name)
        model = cast(LibraryModelMixin, self.get_base_model())
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        task = check_adapter_to_load(model, model_id, hub)
        folder = os.fspath(adapter_folder(model_id, hub))
        # They have found it; PEFT would ask the hub again.
        kwargs = {key: value for key, value in kwargs.items() if key not in HUB_ARGUMENTS}
        if adapter_name in self.peft_config:
            # PEFT would keep the settings of the adapter that is there, such as LoRA's alpha.
            ours = self.peft_config[adapter_name].to_dict()
            theirs = PeftConfig.from_pretrained(folder).to_dict()
            for name in filter(_SETTINGS_OF_COMPUTING.search, sorted(ours.keys() & theirs.keys())):
                if ours[name] != theirs[name]:
                    raise ValueError(
                        f"{model_id}: {name}={theirs[name]!r}; the adapter {adapter_name!r} that is loaded has "
                        f"{ours[name]!r}, so delete_adapter({adapter_name!r}) first, or give another adapter_name"
                    )
        trained = PeftConfig.from_pretrained(folder).modules_to_save
        heads = {}
        if task is None:
            warn_of_unknown_names(model, folder, trained)
        elif adapter_name in self.peft_config:
            take_task(model, folder, adapter_name, task, trained)
        else:
            heads = heads_for(model, folder, task, ensured_switch(model).own, trained)
        with added(model, self, folder, adapter_name, task), borrowing(model, heads):
            try:
                loaded = super().load_adapter(folder, adapter_name, *args, **kwargs)
            except KeyError as error:
                raise ValueError(
                    f"{model_id}: the adapter lacks {error.args[0]}, which it has to hold by its config for this "
                    f"{type(model).__name__}"
                ) from error
        if task is not None:
            ensured_switch(model).learn(adapter_name, task)
        config = self.peft_config[adapter_name]
        config.base_model_name_or_path = located(config.base_model_name_or_path, folder)
        if kwargs.get("autocast_adapter_dtype", True) and not config.is_prompt_learning:
            weights = load_peft_weights(folder, device="cpu", key_mapping=kwargs.get("key_mapping"))
            keep_stored_precision(self, weights, adapter_name)
            expected = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
            lacking = sorted(key for key in expected.keys() - weights.keys() if key.endswith(("_mean", "_var")))
            if lacking:
                # PEFT loads what there is.
                warnings.warn(
                    f"{model_id}: the adapter lacks {listed(lacking, 2)}, statistics of norms that it trained, and "
                    f"{type(model).__name__} has others: answers differ from the trained ones; train it again",
                    stacklevel=2,
                )
        return loaded

    # Of a model whose adapters are all deleted, PEFT still looks for the active one.

    def get_base_model(self) -> torch.nn.Module:
        """Return the model below the adapters."""
        if self.peft_config:
            return super().get_base_model()
        return self.base_model if self._is_prompt_learning else cast(Any, self.base_model).model

    @property
    def has_active_enabled_adapter(self) -> bool:
        """True if an adapter is active."""
        return bool(self.peft_config) and super().has_active_enabled_adapter

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse the adapters of single rows where they would be ignored; PEFT's forward pass and `generate` ask here.

        Raises:
            ValueError: The method runs one adapter for a whole batch, or rows of the layers are no clouds.
        """
        if kwargs.get("adapter_names") is not None:
            names = kwargs["adapter_names"]
            refused = f"adapter_names={list(names)}: one adapter runs for a whole batch"
            # Methods that mix adapters have this method, and others leave out the argument without a word.
            if not hasattr(self.base_model, "_enable_peft_forward_hooks"):
                raise ValueError(f"{refused}; choose it by set_adapter(…)")
            for module in self.get_base_model().modules():
                stack = getattr(module, "layer_stack", None) if hasattr(type(module), "layer_stack") else None
                if stack is not None and stack.attention_axis != "tokens":
                    raise ValueError(
                        f"{refused} of a {type(module).__name__}, whose layers mix rows; use set_adapter(…)"
                    )
            switch = switch_of(self.get_base_model())
            if switch is not None:
                switch.check_rows(None if name == "__base__" else name for name in names)
            # Only LoRA tells trained modules about the rows; those of the active adapter would run for all.
            if not isinstance(self.base_model, LoraModel) and (trained := self._trained_modules(set(names))):
                raise ValueError(f"{refused} of {trained[0]}, which is trained in full; choose it by set_adapter(…)")
        try:
            with super()._enable_peft_forward_hooks(*args, **kwargs):
                yield
        except BaseException:
            # PEFT leaves its hooks after an error, and every later batch would have the adapters of this one.
            for module in self.modules():
                for number, hook in list(module._forward_pre_hooks.items()):
                    if isinstance(hook, functools.partial) and "adapter_names" in hook.keywords:
                        del module._forward_pre_hooks[number]
                        module._forward_pre_hooks_with_kwargs.pop(number, None)
            raise

    def _trained_modules(self, names: Collection[str]) -> list[str]:
        """Return the names of modules that one of these adapters has trained in full."""
        trained = []
        for path, module in self.get_base_model().named_modules():
            if isinstance(module, ModulesToSaveWrapper) and not module.modules_to_save.keys().isdisjoint(names):
                trained.append(path)
        return trained

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> torch.nn.Module:
        """Merge adapters into the weights as PEFT does, with the modules that the adapter trained in full.

        Raises:
            ValueError: Several of the adapters trained the same module, or the method cannot be merged.
        """
        with self._trained_modules_in_place(adapter_names, keeps=True):
            return cast(Any, self.base_model).merge_and_unload(progressbar, safe_merge, adapter_names)

    def unload(self) -> torch.nn.Module:
        """Remove the adapters as PEFT does; modules that the active adapter trained in full stay."""
        with self._trained_modules_in_place(None, keeps=False):
            return cast(Any, self.base_model).unload()

    @contextlib.contextmanager
    def _trained_modules_in_place(self, adapter_names: Sequence[str] | None, keeps: bool) -> Iterator[None]:
        """Put modules that an adapter trained in full where PEFT has its wrappers; those come back after an error.

        The config then says the task of the adapters if the model `keeps` them, or one of their heads, else its own.

        PEFT copies the weight of each, which heads of several layers lack, takes those of the active adapter whatever
        adapters are merged, and with LN tuning leaves its wrappers in the model.
        """
        model = self.get_base_model()
        chosen = list(self.active_adapters if adapter_names is None else adapter_names)
        wrappers = {path: module for path, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
        switch = wrappers.pop(SWITCH, None)
        if isinstance(switch, TaskSwitch):
            switch.check_together(chosen)
        placed = {}
        for path, wrapper in wrappers.items():
            copies = [name for name in chosen if name in wrapper.modules_to_save]
            if len(copies) > 1:
                raise ValueError(
                    f"the adapters {', '.join(copies)} have each trained {path}, of which a model has one; merge one"
                )
            placed[path] = wrapper.modules_to_save[copies[0]] if copies else wrapper.original_module
        has_head = any(name in wrapper.modules_to_save for wrapper in wrappers.values() for name in chosen)
        try:
            for path, module in placed.items():
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, None if isinstance(module, Absent) else module)
            model._modules.pop(SWITCH, None)
            yield
        except BaseException:
            for path, wrapper in wrappers.items():
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, wrapper)
            if switch is not None:
                model._modules[SWITCH] = switch
            raise
        if isinstance(switch, TaskSwitch):
            switch.end(chosen[0] if chosen and (keeps or has_head) else None)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the weights until `unmerge_adapter`, as PEFT does.

        Raises:
            ValueError: One of them has trained modules in full and is not active: those of another would run; or it
                is of another task than the active one.
        """
        for name in adapter_names or ():
            trained = self._trained_modules([name, *self.active_adapters])
            if trained and name not in self.active_adapters:
                raise ValueError(
                    f"the adapter {name!r} is not active, and {trained[0]} is trained in full; "
                    f"call set_adapter({name!r}) first"
                )
        switch = switch_of(self.get_base_model())
        if switch is not None:
            switch.check_together([*self.active_adapters, *(adapter_names or ())])
        cast(Any, self.base_model).merge_adapter(adapter_names, safe_merge)

    def add_weighted_adapter(self, adapters: list[str], *args: Any, **kwargs: Any) -> None:
        """Add an adapter that is the sum of others, as PEFT does.

        Raises:
            ValueError: One of them has trained modules in full, which the sum would lack, or they are of several
                tasks.
        """
        trained = self._trained_modules(adapters)
        if trained:
            raise ValueError(
                f"add_weighted_adapter leaves out {trained[0]}, which these adapters have trained in full; train them "
                "with modules_to_save=[] on a saved model whose head is trained"
            )
        switch = switch_of(self.get_base_model())
        if switch is not None:
            switch.check_together(adapters)
        before = set(self.peft_config)
        cast(Any, self.base_model).add_weighted_adapter(adapters, *args, **kwargs)
        for name in set(self.peft_config) - before if switch is not None else ():
            cast(TaskSwitch, switch).learn(name, cast(TaskSwitch, switch).task_of(adapters[0]))

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as PEFT does."""
        if not peft_config.is_prompt_learning:
            peft_config = with_default_modules(self.get_base_model(), peft_config)
            super().add_adapter(adapter_name, peft_config, *args, **kwargs)
            return
        model = self.base_model
        method = PeftType(peft_config.peft_type)
        problem = None
        if opens_from_adapter(type(model), cast(PreTrainedModel, model).config):
            problem = "which reads none; expected a method such as PromptTokensConfig of hf_any3d"
        elif getattr(model.config, "model_type", None) in _READ_CLOUDS_AND_WORDS and method != PeftType.PREFIX_TUNING:
            problem = "whose input_ids mark the places of clouds; expected PREFIX_TUNING, or a method such as LORA"
        if problem:
            raise ValueError(f"{method.value} passes embeddings of words to {type(model).__name__}, {problem}")
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the class of PEFT, as this one has no name that it could be imported by."""
        # The second base is the class of PEFT, see `adapted_class`.
        return _restore, (type(self).__bases__[1],), self.__dict__


@functools.cache
def adapted_class(peft_class: type[PeftModel]) -> type[PointCloudPeftModel]:
    """Return a subclass of a class of PEFT with the methods of `PointCloudPeftModel`, of the same name."""
    members = {"__module__": __name__, "__doc__": peft_class.__doc__}
    return type(peft_class.__name__, (PointCloudPeftModel, peft_class), members)


def _restore(peft_class: type[PeftModel]) -> PointCloudPeftModel:
    adapted = adapted_class(peft_class)
    # Without the constructor: copying and pickling set the state afterwards.
    return adapted.__new__(adapted)


@Patch(
    ("peft.peft_model:PeftModel.__init__",),
    "chooses the class by the task type alone; its methods save adapters without the config of the model around them, "
    "write templates as cards, load adapters onto a base with other weights, and leave a new decoder untrained",
)
def _become_ours(
    original: Callable, self: PeftModel, model: torch.nn.Module, peft_config: PeftConfig, *args: Any, **kwargs: Any
) -> None:
    if not is_ours(model):
        original(self, model, peft_config, *args, **kwargs)
        return
    if isinstance(model, PointCloudPeftModel):
        raise ValueError(
            f"the model has the adapter {', '.join(map(repr, model.peft_config))} already; expected "
            "model.load_adapter(directory, adapter_name=…) or model.add_adapter(name, config), and "
            "model.set_adapter(name)"
        )
    # Before PEFT's constructor, which already calls methods that our class overrides.
    if not isinstance(self, PointCloudPeftModel):
        self.__class__ = adapted_class(type(self))
    peft_config = with_default_modules(model, peft_config)
    original(self, model, peft_config, *args, **kwargs)
    if isinstance(model, LibraryModelMixin):
        ensured_switch(cast(PreTrainedModel, model)).set_adapter(self.active_adapters)
    # A new model is in training mode, and nobody need call train().
    hold_statistics(model, is_frozen=True)


@Patch(
    ("peft.utils.hotswap:hotswap_adapter_from_state_dict",),
    "swaps the matrices of LoRA alone, fails with a KeyError on a trained head, and does not ask for the base",
)
def _swap_trained_modules_too(
    original: Callable,
    model: Any,
    state_dict: dict[str, torch.Tensor],
    adapter_name: str,
    config: PeftConfig,
    *args: Any,
    **kwargs: Any,
) -> None:
    ours = getattr(model, "_orig_mod", model)  # of a compiled model
    if not isinstance(ours, PointCloudPeftModel):
        original(model, state_dict, adapter_name, config, *args, **kwargs)
        return
    base = cast(PreTrainedModel, ours.get_base_model())
    # Nothing here says where the tensors were read.
    task = recorded_task(base, config)
    if task is None:
        warn_of_unknown_names(base, None, config.modules_to_save)
        _swap_all(original, ours, model, state_dict, adapter_name, config, *args, **kwargs)
        return
    switch = ensured_switch(base)
    heads, before = {}, {}
    for path, head in heads_for(
        base, adapter_name, task, switch.task_of(adapter_name), config.modules_to_save
    ).items():
        wrapper: Any = base.get_submodule(path)
        # A module that the other one lacks is refused below.
        if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save:
            heads[path], before[path] = head, wrapper.modules_to_save[adapter_name]
    replace_heads(base, adapter_name, heads)
    try:
        _swap_all(original, ours, model, state_dict, adapter_name, config, *args, **kwargs)
    except BaseException:
        replace_heads(base, adapter_name, before)
        raise
    switch.learn(adapter_name, task)


def _swap_all(
    original: Callable,
    ours: PointCloudPeftModel,
    model: Any,
    state_dict: dict[str, torch.Tensor],
    adapter_name: str,
    config: PeftConfig,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Swap the matrices of LoRA and the trained modules of an adapter; `model` may be the compiled one of `ours`."""
    # Names of stored tensors of trained modules, with those in the model.
    trained = {}
    for path, module in ours.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for stored, place in module.adapter_state_dict_load_map(adapter_name).items():
                trained[f"{path}.{stored}"] = f"{path}.{place}"
    others = {key for key in state_dict if ".lora_" not in key}
    different = sorted(others ^ trained.keys())
    if different:
        raise ValueError(
            f"only one of the two adapters has trained {different[0]}; load the other one beside it: "
            "load_adapter(directory, adapter_name) and set_adapter(adapter_name)"
        )
    warn_of_another_base(cast(LibraryModelMixin, ours.get_base_model()), config.base_model_name_or_path)
    matrices = {key: tensor for key, tensor in state_dict.items() if key not in trained}
    original(model, matrices, adapter_name, config, *args, **kwargs)
    present = ours.state_dict()
    for key, place in trained.items():
        present[place].copy_(state_dict[key])
