"""Changes to how `AutoPeftModel` opens adapters, as in `hf_any3d.integration.patches`: imported when PEFT is.

Apart from the other changes to PEFT, since this one is there from the import on, as it sees names.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, cast

from peft import PeftConfig, PeftModel, auto as peft_auto
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.extensions import EXTENSIONS
from hf_any3d.hub.names import check_name
from hf_any3d.integration.patches import (
    OUR_MODELS,
    Patch,
    apply_patches_of,
    is_our_adapter,
    our_config,
    read_object,
    refuse_folder_of_ours,
)
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.pretrained_parts.adapter_loading import (
    cast_base,
    open_named_base,
    opens_on_part,
    without_adapter,
)
from hf_any3d.modeling.pretrained_parts.contents import Contents, adapter_folder, contents_of, find_file
from hf_any3d.modeling.pretrained_parts.loading import HUB_ARGUMENTS, dtype_named

_PACKAGE = __name__.partition(".")[0]


def apply_auto_peft_patches(lora_targets: Mapping[str, list[str]]) -> None:
    """Apply the patch of PEFT's auto classes, and fill its table of what LoRA adapts.

    Args:
        lora_targets: `model_type` of our language models -> the modules that LoRA adapts by default.
    """
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.update(lora_targets)
    apply_patches_of(__name__)


@Patch(
    ("peft.auto:_BaseAutoPeftModel.from_pretrained",),
    "opens the base model by a class of a library that it knows, which this is not, and not by the config",
)
def _open_adapter_repository_as_peft_model(
    original: Callable,
    cls: Any,
    pretrained_model_name_or_path: str | os.PathLike,
    adapter_name: str = "default",
    is_trainable: bool = False,
    config: PeftConfig | None = None,
    revision: str | None = None,
    import_allowlist: list[str] | None = None,
    **kwargs: Any,
) -> PeftModel:
    hub = {"revision": revision, **kwargs}
    hub = {name: hub[name] for name in ("cache_dir", "revision", "subfolder", "token") if hub.get(name) is not None}
    adapter: dict[str, Any] = {"adapter_name": adapter_name, "is_trainable": is_trainable}
    adapter |= {"config": config, "revision": revision}
    if not _names_our_adapter(pretrained_model_name_or_path, hub):
        refuse_folder_of_ours(pretrained_model_name_or_path, hub.get("subfolder"))
        return original(cls, pretrained_model_name_or_path, import_allowlist=import_allowlist, **adapter, **kwargs)
    name = os.fspath(pretrained_model_name_or_path)
    check_name(name, hub)
    recorded = our_config(name, hub)
    with stored_settings(name, kwargs):
        stored = PeftConfig.from_pretrained(name, **hub)
    task_type: Any = stored.task_type
    expected = cls._target_peft_class
    if task_type is not None:
        expected = peft_auto.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(task_type, PeftModel)
    if recorded is None and stored.base_model_name_or_path is None:
        raise ValueError(
            f"{name} names no base model and holds no config.json; open the model that the adapter was trained on, "
            "and the adapter with PeftModel.from_pretrained(model, …)"
        )
    # For another task type the original names the class to use.
    if recorded is None or cls._target_peft_class is not expected:
        # PEFT imports classes of base models only from packages on this list.
        allowed = import_allowlist or [*peft_auto.get_default_import_allowlist(), _PACKAGE, *EXTENSIONS]
        return original(cls, name, import_allowlist=allowed, **adapter, **kwargs)
    with stored_settings(name, kwargs):
        holds = contents_of(name, {key: value for key, value in hub.items() if key in HUB_ARGUMENTS})
        base = _base_of(holds, kwargs)
        folder = os.fspath(adapter_folder(name, holds.hub))
        found = {"cache_dir", "local_files_only", "subfolder", "token", "force_download"}
        rest = {key: value for key, value in kwargs.items() if key not in found}
        del adapter["revision"]
        return expected.from_pretrained(base, folder, **adapter, **rest)


def _names_our_adapter(name: Any, hub: Mapping[str, Any]) -> bool:
    """Return whether a name is that of an adapter on one of our models."""
    try:
        file = find_file(name, ADAPTER_CONFIG_NAME, hub)
    except Exception:  # whichever it is, the original raises it again
        return False
    if file is None or is_our_adapter(file):
        return file is not None
    # What a damaged file named is unknown; of an intact one, the original asks for nothing more.
    settings = read_object(file)
    is_damaged = not settings or not isinstance(settings.get("auto_mapping") or {}, dict)
    return is_damaged and our_config(name, hub) is not None


def _base_of(holds: Contents, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Open the model that an adapter of ours was trained on, and take its arguments out of `kwargs`."""
    recorded = cast(dict[str, Any], holds.config)
    dtype = dtype_named(kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None))
    loading = {argument: kwargs.pop(argument, None) for argument in ("attn_implementation", "quantization_config")}
    loading["device_map"] = kwargs.get("device_map")
    classes = {model.__name__: model for model in OUR_MODELS[recorded["model_type"]]}
    named = [architecture for architecture in recorded.get("architectures") or () if architecture in classes]
    # Without a recorded class it is the first one of its type, the model without a head.
    model_class: Any = classes[[*named, *classes][0]]
    config = model_class.config_class.from_pretrained(holds.name, **holds.hub)
    # The adapter is asked for, whatever was saved over it.
    if opens_on_part(model_class, holds, config):
        base = model_class.build_for_adapter(holds.name, config, dict(holds.hub), dtype=dtype, **loading)
        cast_base(base, dtype)
        return base
    given = {key: value for key, value in {**loading, "dtype": dtype}.items() if value is not None}
    if holds.has_weights and holds.is_base_here:
        return model_class.from_pretrained(holds.name, **holds.hub, **without_adapter(given))
    return open_named_base(model_class, holds, **given)
