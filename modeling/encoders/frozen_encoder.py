"""Models around a frozen pretrained encoder that is loaded from its own repository and not stored with the model."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import expand_device_map, offload_weight
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]
from transformers.utils import CONFIG_NAME

from hf_any3d.modeling.config_checks import check_fields
from hf_any3d.modeling.encoders.loading import (
    ENCODER_WEIGHTS,
    FROZEN,
    build_encoder,
    convert_encoder,
    encoder_dtype,
    encoder_settings,
    freeze,
    load_encoder,
    open_encoder,
    replace_weights,
)
from hf_any3d.modeling.encoders.registry import find_family
from hf_any3d.modeling.hooks import ModelWarning
from hf_any3d.modeling.layers.adapted_layers import LayerStack
from hf_any3d.modeling.layers.forward_contract import AttentionRecorder
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.pretrained_parts.contents import read_json
from hf_any3d.modeling.pretrained_parts.loading import encoder_loading, is_quantized, tell_quantized
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, open_recorded
from hf_any3d.modeling.pretrained_parts.tensors import (
    CHECKSUM_PREFIX,
    changed_since_loading,
    differing,
    is_local,
    own_state,
    remember_weights,
    tensors_checksum,
)

_Model = TypeVar("_Model", bound=PreTrainedModel)


def frozen_encoder_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return the frozen encoder of a model or of its base model; None while they are being built."""
    return getattr(getattr(model, model.base_model_prefix, model), "encoder", None)


class FrozenEncoderMixin(LibraryModelMixin):
    """For `PreTrainedModel` classes whose base model owns a frozen `encoder`, the part "encoder" of its config.

    The encoder's own modules always stay in eval mode (no dropout, no layer drop), while adapters inside it follow
    `train()`. Its weights are not saved as long as they are those that the config names; `from_pretrained` then loads
    them from there and verifies the recorded checksum.
    """

    _adapted_part = "encoder"
    _part_paths = {"encoder": "encoder"}
    _settings_without_effect_on_adapters = ("encoder_", "parts")
    _keys_to_ignore_on_load_missing = [r"(^|\.)encoder\."]

    @classmethod
    def _from_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        # Of an encoder, transformers would read none of the weights, and build a model of the default settings.
        if name is not None and kwargs.get("config") is None and os.path.isdir(name):
            stored = read_json(os.fspath(name), CONFIG_NAME, {"subfolder": kwargs.get("subfolder") or ""}) or {}
            kind = stored.get("model_type")
            if isinstance(kind, str) and kind != cls.config_class.model_type and kind in CONFIG_MAPPING_NAMES:
                raise ValueError(
                    f"{name} holds a model of the type {kind}, not {cls.config_class.model_type}; "
                    f"{cls.__name__}.from_encoder_pretrained({str(name)!r}) builds one around it"
                )
        return super()._from_repository(name, *args, **kwargs)

    @classmethod
    def from_encoder_pretrained(
        cls: type[_Model],
        encoder_name_or_path: str | os.PathLike | None = None,
        *,
        config: PreTrainedConfig | None = None,
        tower: str | None = None,
        revision: str | None = None,
        num_layers: int | None = None,
        preset: str | None = None,
        encoder_weights: str = "pretrained",
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        quantization_config: Any = None,
        **config_kwargs: Any,
    ) -> _Model:
        """Build an untrained model around a pretrained text, vision or audio encoder, which stays frozen.

        An encoder whose layers cannot read point tokens raises an UnsupportedEncoder.

        Args:
            encoder_name_or_path: Hub name or local directory of a transformers checkpoint.
            config: A complete config instead, such as that of a saved model: the encoder that it names is loaded and
                checked. This makes the base for `PeftModel.from_pretrained(base, saved)`.
            tower: Encoder of a composite checkpoint ("text" or "vision" of CLIP).
            revision: Branch, tag or commit of the encoder's repository; the commit is pinned in the config.
            num_layers: Use only the first layers of the encoder.
            preset: Settings in place of the defaults of the config, by a name of the class's `presets`; those that are
                given win. None for the defaults of the config.
            encoder_weights: "pretrained", or, as a control of a study, "random" or "shuffled": what is made of the
                encoder's weights before they are frozen. Such an encoder is stored with the model. It is a control of
                a trained model: before training, features are blind to the shape of patches.
            dtype: Dtype of the encoder's weights alone, by default float32; unlike `encoder_dtype`, it is not saved.
            attn_implementation: "sdpa", "eager", "flash_attention_2" … for the encoder.
            device_map: Device of the full model: "cuda:1", "auto" for the fastest one …
            quantization_config: Quantization of the frozen encoder's weights, such as `BitsAndBytesConfig(…)`.
            **config_kwargs: Any field of the class's `config_class`: `num_labels`, `id2label`, …

        Raises:
            ValueError: Neither an encoder nor a config is given, or both.
            UnsupportedEncoder: The layers of this encoder cannot read point tokens; says why, and names some that can.
            EncoderUnavailableError: The weights are neither in a directory of this name, nor can the hub be reached or
                has the cache or a package them.
            OSError: The hub has no such repository.
            TypeError: An argument is no field of the config.
        """
        if (encoder_name_or_path is None) == (config is None):
            given = "is missing" if config is None else "is given beside config, which names one"
            raise ValueError(f"encoder_name_or_path {given}; expected an encoder, by its name or by a config")
        if encoder_weights not in ENCODER_WEIGHTS:
            expected = ", ".join(map(repr, ENCODER_WEIGHTS))
            raise ValueError(f"encoder_weights={encoder_weights!r}; expected one of {expected}")
        check_fields(cls.config_class, config_kwargs, f"{cls.__name__}.from_encoder_pretrained")
        if config is None:
            settings = encoder_settings(encoder_name_or_path, tower, revision, num_layers)
            # Defaults may depend on the encoder, such as the number of its positions.
            config_kwargs = cls.complete_settings(settings["encoder_config"], config_kwargs, preset)
            config = cls.config_class(**settings, **config_kwargs, attn_implementation=attn_implementation)
        elif attn_implementation is not None:
            config.encoder_config._attn_implementation = attn_implementation
        encoder = load_encoder(config, dtype, **encoder_loading(device_map, quantization_config))
        if quantization_config is not None:
            tell_quantized(encoder, quantization_config)
        if encoder_weights != "pretrained":
            if is_quantized(encoder):
                raise ValueError(
                    f"encoder_weights={encoder_weights!r} and quantization_config exclude each other; pass one of them"
                )
            encoder = replace_weights(encoder, encoder_weights)
            # These weights are in no repository; they are stored with the model.
            config.change_part("encoder", stored=True, checksum=None, subfolder=None, control=encoder_weights)
        model = cls(config, encoder=encoder).eval()
        return model if device_map is None else model.to(encoder.device)

    @classmethod
    def complete_settings(
        cls, encoder_config: PreTrainedConfig, given: Mapping[str, Any], preset: str | None
    ) -> dict[str, Any]:
        """Return the settings of a new model's config: those given, and those of a preset for what is not given."""
        if preset is not None:
            raise ValueError(f"preset={preset!r}; expected None, as {cls.__name__} has no presets")
        return dict(given)

    def adopt_encoder(self, encoder: PreTrainedModel | None) -> None:
        """Set the encoder, before `post_init`; None builds a random one, which `from_pretrained` replaces."""
        self._encoder_is_random = encoder is None
        self._encoder_trains = False
        self._encoder_was_stored = False
        self._is_warned = False
        config = self.config
        self.family = find_family(config.encoder_config)
        if config.released.attention_axis == "batch" and not self.family.ignores_places:
            raise ValueError("attention_axis='batch': this encoder attends by tokens' places; expected 'tokens'")
        if encoder is None:
            encoder = build_encoder(self.config.encoder_config)
        if encoder.config._attn_implementation is None:
            # Nesting a config in another one resets the attention implementation that its model was built with.
            encoder.config._attn_implementation = self.config._attn_implementation
        # What the config says counts, even for an encoder that was loaded in another dtype.
        dtype = encoder_dtype(config)
        if dtype is not None:
            convert_encoder(encoder, dtype)
        self.config.encoder_config = encoder.config
        self.encoder = freeze(encoder)
        # Only its layers are called as a whole; FSDP2 must not gather the embeddings' weights at a call of theirs.
        encoder._no_split_modules = {type(layer).__name__ for layer in self.family.layers_of(encoder)}
        if self.config.part("encoder").is_elsewhere:
            self._keys_to_ignore_on_save = {f"encoder.{key}" for key in encoder.state_dict()}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights outside the frozen encoder, which may have another one; saved in the config."""
        encoder = frozen_encoder_of(self)
        frozen = set() if encoder is None else set(map(id, encoder.parameters()))
        weights = (weight for weight in self.parameters() if weight.is_floating_point() and id(weight) not in frozen)
        return next(weights).dtype

    @property
    def layer_stack(self) -> LayerStack | None:
        """The encoder's layers; None for a model that owns no encoder, such as one with a head around a base model."""
        encoder = self._modules.get("encoder")
        if encoder is None:
            return None
        family = find_family(self.config.encoder_config)
        return LayerStack(
            layers=family.layers_of(encoder),
            path=f"encoder.{family.layers}",
            branch=family.branch,
            hidden_size=self.config.encoder_config.hidden_size,
            views=getattr(self.config, "num_views", 0),
            pretrained=("encoder",),
            attention_axis=self.config.released.attention_axis,
        )

    @property
    def is_loaded_in_8bit(self) -> bool:
        """True if the encoder is loaded in 8 bits; PEFT reads this from the full model to choose its layers."""
        return getattr(frozen_encoder_of(self), "is_loaded_in_8bit", False)

    @property
    def is_loaded_in_4bit(self) -> bool:
        """True if the encoder is loaded in 4 bits."""
        return getattr(frozen_encoder_of(self), "is_loaded_in_4bit", False)

    def warn_if_encoder_is_random(self) -> None:
        """Warn once if the config names an encoder whose weights were not loaded; for the owner's `forward`."""
        if self._encoder_is_random and self.config.encoder_name_or_path is not None:
            warnings.warn(
                f"the encoder has random weights, not those of {self.config.encoder_name_or_path}: build the model "
                "with from_pretrained(…) or from_encoder_pretrained(config=…), not from the config alone",
                ModelWarning,
                stacklevel=3,
            )
            self._encoder_is_random = False

    def record_attentions(self) -> AttentionRecorder:
        """Return a recorder of the attention weights of the encoder's layers."""
        kinds: dict[type[nn.Module], int] = {}
        for module in self.encoder.modules():
            # transformers declares by class what its layers return.
            recorded = (getattr(type(module), "_can_record_outputs", None) or {}).get("attentions")
            # A class whose second output is the weights, a recorder with the class and the output's index, or a list.
            for entry in recorded if isinstance(recorded, list) else [recorded]:
                kind = getattr(entry, "target_class", entry)
                if isinstance(kind, type):
                    kinds[kind] = getattr(entry, "index", 1)
        return AttentionRecorder(self.family.layers_of(self.encoder), kinds, self.encoder.config.model_type)

    def warn_about_batch_dependence(self) -> None:
        """Warn once in eval mode if the output depends on the other clouds of a batch; for the owner's `forward`."""
        flags = self.config.batch_dependent_flags
        if flags and not self.training and not self._is_warned:
            text = f"this model's predictions depend on the other clouds of a batch ({', '.join(flags)})"
            warnings.warn(text, ModelWarning, stacklevel=3)
            self._is_warned = True

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode of everything except the encoder's own modules, which stay in eval mode unless they train."""
        super().train(mode)
        owner = self._encoder_owner
        # `unfreeze`, or a released program whose teacher keeps its dropout.
        encoder = None if getattr(owner, "_encoder_trains", False) else frozen_encoder_of(self)
        for module in encoder.modules() if encoder is not None else ():
            # Not getattr: adapters forward unknown attributes to the wrapped layer.
            if FROZEN in vars(module):
                module.training = False
        return self

    @property
    def _encoder_owner(self) -> PreTrainedModel:
        return getattr(self, self.base_model_prefix, self)

    # Loading and saving; see `LibraryModelMixin`.

    @property
    def adapted_part(self) -> PreTrainedModel:
        """The encoder."""
        return self._encoder_owner.encoder

    @classmethod
    def open_part(cls, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any) -> PreTrainedModel:
        """Load the encoder with `load_encoder`; hub arguments of the model do not apply to the encoder."""
        return load_encoder(config, **_encoder_arguments(config, **loading))

    @classmethod
    def open_stored_part(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Load the encoder that is stored next to an adapter."""
        folder = config.part("encoder").subfolder or cls._adapted_part
        encoder, missing = open_encoder(name, config.encoder_config, **hub, **_encoder_arguments(config, **loading))
        if missing:
            raise ValueError(f"{name}: the encoder in {folder}/ lacks {', '.join(missing[:8])}")
        return freeze(encoder)

    @classmethod
    def build_around(cls, part: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the model around an encoder."""
        return cls(config, part)

    @classmethod
    def stored_dtype(cls, config: PreTrainedConfig) -> torch.dtype:
        """Return the dtype of a stored encoder."""
        return config.encoder_config.dtype or torch.float32

    def find_source(self) -> PretrainedPart:
        """Return the encoder's record, after marking an encoder that was changed as stored."""
        self._encoder_owner.store_changed_parts()
        return self.config.part("encoder")

    def save_part(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Save the encoder as a checkpoint of its own."""
        self.adapted_part.save_pretrained(folder, state_dict=dict(state))

    def describe_weights(self, config: PreTrainedConfig) -> str | None:
        """Return the encoder's checksum in the kind that the config of an adapter has, or say that it was changed."""
        # An adapter fits the weights that it was trained with: these are compared by checksum, or tensor by tensor.
        ours = self.config.part("encoder")
        theirs = config.part("encoder")
        if not theirs.is_elsewhere:
            checksum = self.checksum_in_memory(self.stored_dtype(config))
            if checksum == theirs.checksum:
                return checksum
            # In another precision, those of the source are compared, of the part alone as they are stored.
            if ours.is_elsewhere and not self._encoder_owner.changed_tensors("encoder"):
                checksum = tensors_checksum(own_state(load_encoder(self.config)))
            elif torch.finfo(self.adapted_part.dtype).bits < 32 and not changed_since_loading(self.adapted_part):
                checksum = ours.checksum
            return checksum
        if ours.is_elsewhere and not self._encoder_owner.changed_tensors("encoder"):
            if ours.checksum is None:
                return None
            # Checksums are of tensors or of files: only those of one kind compare.
            alike = ours.checksum.startswith(CHECKSUM_PREFIX) == theirs.checksum.startswith(CHECKSUM_PREFIX)
            return ours.checksum if alike else open_recorded(ours).checksum_like(theirs.checksum)
        changed = differing(own_state(self.adapted_part), own_state(load_encoder(config)))
        return "weights that were changed" if changed else theirs.checksum

    @classmethod
    def _from_full_repository(
        cls, name: str | os.PathLike | None, *args: Any, quantization_config: Any = None, **kwargs: Any
    ) -> Any:
        opened = super()._from_full_repository(name, *args, **kwargs)
        model = opened[0] if isinstance(opened, tuple) else opened
        if quantization_config is None:
            if name is not None and model.config.part("encoder").is_elsewhere:
                _check_given_encoder(model, name)
            return opened
        # Trained weights stay in full precision; only the encoder is loaded again.
        owner = model._encoder_owner
        if not model.config.part("encoder").is_elsewhere:
            raise ValueError(f"quantization_config: {name} stores its encoder itself; expected one of a repository")
        loading = {"device_map": {"": owner.device}, "quantization_config": quantization_config}
        # Quantized from its own repository, as the model's was already loaded in full precision.
        owner.adopt_encoder(load_encoder(model.config, owner.encoder.dtype, **loading))
        owner._encoder_is_random = False
        return opened

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, **kwargs: Any
    ) -> Any:
        done = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)
        if done[1] is not None:  # `_initialize_missing_keys`, which follows, adds the encoder
            name, owner = next((n, each) for n, each in model.named_modules() if isinstance(each, FrozenEncoderMixin))
            vars(owner)["_on_disk"] = (load_config, done[1], f"{name}." if name else "")
        return done

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Any, *args: Any, **kwargs: Any) -> None:
        # The only call that passes a model the weights that its files lack; offloaded weights are not among them,
        # although they have no memory either.
        self._keys_without_file = set(missing_keys)
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        owner = self._encoder_owner
        encoder = owner.encoder
        owner._encoder_is_random = False
        plan, on_disk, path = vars(self).pop("_on_disk", (None, None, ""))
        without_file = vars(self).pop("_keys_without_file", None)
        if encoder is None:  # an autoencoder without a teacher
            super()._initialize_missing_keys(is_quantized)
            return
        prefix = next(f"{name}." for name, module in self.named_modules() if module is encoder)
        if without_file is None:  # a model inside the one that is being loaded, which alone is passed the missing keys
            weights = encoder.named_parameters()
            missing = sorted(name for name, weight in weights if not getattr(weight, "_is_hf_initialized", False))
        else:
            # Tied weights are stored once, under the other name.
            without_file -= set(self.all_tied_weights_keys)
            missing = sorted(key.removeprefix(prefix) for key in without_file if key.startswith(prefix))
        if missing and not self.config.part("encoder").is_elsewhere:
            count = sum(1 for _ in encoder.state_dict())
            what = "encoder weights" if len(missing) >= count else f"encoder weights {', '.join(missing[:8])}"
            raise ValueError(
                f"{self.config.name_or_path} holds no {what}, and its config does not say where to find them; "
                "give encoder_name_or_path=…"
            )
        owner._encoder_was_stored = not missing
        if missing:
            _fetch_weights(encoder, self.config)
            if on_disk is not None:
                # Otherwise transformers would look for them among the files of the loaded repository.
                weights = {path + prefix + name: weight.detach() for name, weight in encoder.named_parameters()}
                for name, place in expand_device_map(plan.device_map, list(weights)).items():
                    if place == "disk":
                        offload_weight(weights[name].contiguous(), name, plan.disk_offload_folder, on_disk)
        # Loading replaces parameters with new ones, which would be trained.
        freeze(encoder)
        super()._initialize_missing_keys(is_quantized)


def _check_given_encoder(model: PreTrainedModel, name: str | os.PathLike) -> None:
    """Refuse an encoder that was named while a model was opened, if the model has stored other weights itself."""
    owner = model._encoder_owner
    encoder = owner.encoder
    state = {} if encoder is None else own_state(encoder)
    # What was fetched from there has been compared.
    if not owner._encoder_was_stored or not all(map(is_local, state.values())):
        return
    source = model.config.encoder_name_or_path
    if differing(state, own_state(load_encoder(model.config, dtype=encoder.dtype))):
        raise EncoderMismatchError(
            f"encoder {source!r}: {name} stores other weights of its encoder; others would change results silently. "
            "Open the model without encoder_name_or_path"
        )


def _fetch_weights(encoder: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Load the weights of an encoder from the repository that the config names."""
    # A second copy until its tensors take the places of the first one's.
    source = load_encoder(config, dtype=encoder.dtype)
    encoder.load_state_dict(source.state_dict(), assign=True)
    # Buffers outside the state dict (rotary frequencies) are uninitialized memory at this point.
    for buffer, loaded in zip(encoder.buffers(), source.buffers(), strict=True):
        buffer.data = loaded.data
    # Otherwise transformers would initialize what it did not load itself at random.
    for module in encoder.modules():
        module._is_hf_initialized = True
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        tensor._is_hf_initialized = True
    remember_weights(encoder)


def _encoder_arguments(
    config: PreTrainedConfig,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
) -> dict[str, Any]:
    if attn_implementation is not None:
        config.encoder_config._attn_implementation = attn_implementation
    return {"dtype": encoder_dtype(config, dtype), **encoder_loading(device_map, quantization_config)}


def unfreeze(model: PreTrainedModel, probe: Callable[[], torch.Tensor]) -> list[str]:
    """Unfreeze the encoder's parameters that the output of `probe`, a run of the model, depends on; return the names.

    Distributed training fails if parameters that a model does not use, such as word embeddings, seem to be trained.
    """
    owner = model._encoder_owner
    encoder = owner.encoder
    if encoder_dtype(model.config) in (torch.bfloat16, torch.float16):
        raise ValueError(f"encoder_dtype={model.config.encoder_dtype!r}; expected 'float32' to train the encoder")
    adapters = sorted({type(m).__name__ for m in encoder.modules() if "base_layer" in m._modules})
    if adapters:
        raise ValueError(f"the encoder holds adapters ({', '.join(adapters)}); merge or unload them first")
    named = dict(encoder.named_parameters())
    # All at first, to ask autograd which of them a run depends on.
    encoder.requires_grad_(True)
    # Layer drop in train mode would leave out layers by chance.
    with evaluation_mode(model), torch.enable_grad():
        reached = torch.autograd.grad(probe().sum(), list(named.values()), allow_unused=True)
    # Parameters on which the output does not depend have no gradient at all.
    trained = [name for name, gradient in zip(named, reached, strict=True) if gradient is not None]
    for name in named.keys() - set(trained):
        named[name].requires_grad_(False)
    owner._encoder_trains = True
    for module in model.modules():
        if isinstance(module, FrozenEncoderMixin):
            # Trained weights are no longer those of the repository, so they are stored with the model.
            module.config.change_part("encoder", stored=True, checksum=None, subfolder=None)
    model.train(model.training)  # now that it trains, the encoder follows the model's mode
    return trained
