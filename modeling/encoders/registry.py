"""The registry of encoder families: layers, norms and positions of pretrained transformers; see `register_family`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.model_classes import main_input_of
from hf_any3d.modeling.encoders.positions import LayerPass, PositionTable, bidirectional_inputs
from hf_any3d.modeling.layers.direct_weights import is_sharded, onloaded

Tower = Literal["text", "vision", "audio"]
# A path inside a model, the same for the family or depending on the config.
Path = str | Callable[[PreTrainedConfig], str | None] | None


class UnsupportedEncoder(ValueError):
    """Raised for an encoder that cannot encode point tokens; the message gives the reason and the supported ones."""


@dataclass(frozen=True)
class EncoderFamily:
    """Paths and positions of one family of pretrained encoders.

    Args:
        name: Common name of the family, for tables and messages.
        model_types: The `model_type` values of its transformers configs.
        tower: Modality that the encoder was trained on.
        layers: Path from the model to its `nn.ModuleList` of layers.
        branch: Path from a layer to the module whose output is the feed-forward branch, before the residual sum.
        positions: Returns the learned positions of a model.
        kind: Kind of these positions, for the table of encoders.
        reached: How they are evaluated at projected coordinates, for the table of encoders.
        final_norm: Path to the norm after the last layer, or None.
        input_norm: Path to the norm between the embeddings and the first layer, or None.
        class_token: Returns the embedding of the class token, `(hidden,)`; None without a class token.
        layer_inputs: Yields the keyword arguments of each layer.
        line_convolution: The encoder's convolution that computes positions, `(batch, length, hidden)` to the same
            shape, or None.
        model_class: Name of the transformers class to load; None for that of `AutoModel`.
        unused: Paths of parts that encoding tokens does not need, such as a decoder; they are removed after loading.
        key_mapping: Renames weights of a composite checkpoint, as in `from_pretrained(key_mapping=…)`.
        one_precision: Whether to convert parameters that transformers keeps in full precision although the family's
            layers cannot add them to others.
        refuses: Returns the reason why an encoder with this config is not supported, or None.
        config: Of a family that was discovered, the config by which it is found again.
    """

    name: str
    model_types: tuple[str, ...]
    tower: Tower
    layers: str
    branch: str
    positions: Callable[[PreTrainedModel], PositionTable]
    kind: str = "learned"
    reached: str = "interpolated table, mean over the views"
    final_norm: Path = None
    input_norm: Path = None
    class_token: Callable[[PreTrainedModel], torch.Tensor] | None = None
    layer_inputs: Callable[[LayerPass], Iterator[dict[str, Any]]] = bidirectional_inputs
    line_convolution: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] | None = None
    model_class: str | None = None
    unused: tuple[str, ...] = ()
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    one_precision: bool = False
    refuses: Callable[[PreTrainedConfig], str | None] = lambda config: None
    config: PreTrainedConfig | None = None

    @property
    def ignores_places(self) -> bool:
        """True if the layers get the same arguments wherever tokens are: positions are in the tokens alone."""
        return getattr(self.layer_inputs, "ignores_places", self.layer_inputs is bidirectional_inputs)

    def positions_of(self, encoder: PreTrainedModel) -> PositionTable:
        """Return the learned positions, even if accelerate offloaded or FSDP2 sharded them."""
        layer_weight = next(self.layers_of(encoder).parameters(), None)
        if layer_weight is None or not is_sharded(layer_weight):
            table = self.positions(encoder)
            if table.weight is None or not (table.weight.is_meta or is_sharded(table.weight)):
                return table
        # Position tables are outside the layers and not in the word embeddings, the largest module there.
        words = encoder.get_input_embeddings() if self.tower == "text" else None
        inside = {id(module) for module in self.layers_of(encoder).modules()}
        outside = [module for module in encoder.modules() if id(module) not in inside and module is not words]
        with onloaded(*outside):
            return self.positions(encoder)

    def layers_of(self, encoder: nn.Module) -> nn.ModuleList:
        """Return the encoder's layers in order, with PEFT wrappers around single layers."""
        return encoder.get_submodule(self.layers)

    def norm_of(self, encoder: nn.Module, path: Path) -> nn.Module | None:
        """Return the norm at `path` (`final_norm` or `input_norm`), or None if the encoder has none."""
        # Some families have the norm in another place, or none, depending on the config.
        path = path(encoder.config) if callable(path) else path
        return None if path is None else encoder.get_submodule(path)

    def __reduce__(self) -> tuple:
        # By name: fields may be lambdas, which cannot be pickled, and a copy should be the family itself.
        return (_registered, (self.model_types[0],)) if self.config is None else (find_family, (self.config,))


# By `model_type`: families, and sub-configs of the towers of composite checkpoints.
_FAMILIES: dict[str, EncoderFamily] = {}
_COMPOSITES: dict[str, dict[str, str]] = {}
# By the settings of a config: families that were discovered, or reasons of refusals.
_DISCOVERED: dict[str, EncoderFamily | str] = {}
_RULES: list[Callable[[PreTrainedConfig], EncoderFamily]] = []


def _registered(model_type: str) -> EncoderFamily:
    return _FAMILIES[model_type]


def register_family(family: EncoderFamily) -> EncoderFamily:
    """Register a family; a `model_type` may belong to only one.

    Raises:
        ValueError: Another family has the `model_type`.
    """
    for model_type in family.model_types:
        if model_type in _FAMILIES:
            raise ValueError(f"model_type '{model_type}' already belongs to family '{_FAMILIES[model_type].name}'")
        _FAMILIES[model_type] = family
    return family


def register_composite(model_type: str, towers: dict[str, str]) -> None:
    """Register a checkpoint with several towers (CLIP) and the sub-config of each."""
    _COMPOSITES[model_type] = dict(towers)


def composite_checkpoints() -> dict[str, tuple[str, ...]]:
    """Return the towers of checkpoints with several encoders, by `model_type`."""
    return {model_type: tuple(towers) for model_type, towers in _COMPOSITES.items()}


def encoder_families() -> dict[str, EncoderFamily]:
    """Return all supported `model_type` values with their families, in the order of registration."""
    return dict(_FAMILIES)


def register_rule(discover: Callable[[PreTrainedConfig], EncoderFamily]) -> None:
    """Register what finds the family of an encoder that none is declared for, or raises `UnsupportedEncoder`."""
    _RULES.append(discover)


def find_family(config: PreTrainedConfig) -> EncoderFamily:
    """Return the family of an encoder config; raises `UnsupportedEncoder` if none supports it."""
    family = _FAMILIES.get(config.model_type)
    if family is None:
        found = _discovered(config)
        if isinstance(found, str):
            raise UnsupportedEncoder(
                f"encoder of model_type '{config.model_type}' is not supported: {found}; {examples_like(config)}"
            )
        return found
    reason = family.refuses(config)
    if reason is not None:
        raise UnsupportedEncoder(
            f"this encoder of model_type '{config.model_type}' is not supported: {reason}; {examples_like(config)}"
        )
    return family


def _discovered(config: PreTrainedConfig) -> EncoderFamily | str:
    """Return the family that the rule finds for a config, or the reason why there is none; kept by its settings."""
    if getattr(config, "attention_type", None) == "block_sparse":
        # Blocks follow the order of words, which a cloud has not; the same weights attend to all as for short texts.
        config.attention_type = "original_full"
    # What an encoder is named, and what its heads and weights are, does not matter.
    settings = {name: value for name, value in config.to_dict().items() if name not in _WITHOUT_EFFECT}
    key = f"{type(config).__name__} {sorted(settings.items(), key=str)}"
    if key not in _DISCOVERED:
        try:
            _DISCOVERED[key] = _RULES[0](config)
        except UnsupportedEncoder as error:
            _DISCOVERED[key] = str(error)
    found = _DISCOVERED[key]
    if isinstance(found, EncoderFamily) and getattr(config, "hidden_size", None) is None:
        # Of a wrapped model of another library, whose config leaves the width to it.
        config.hidden_size = found.config.hidden_size
    return found


_WITHOUT_EFFECT = {
    *("_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version"),
    *("quantization_config", "use_cache", "output_attentions", "output_hidden_states", "return_dict"),
}


def examples_like(config: PreTrainedConfig) -> str:
    """Name three encoders that work, of the modality of one that does not."""
    main = main_input_of(config)
    tower = "vision" if main.startswith("pixel_values") else "text" if main == "input_ids" else "audio"
    return f"supported {tower} encoders are, for example, {_EXAMPLES[tower]}"


_EXAMPLES = {
    "text": "bert, llama and qwen3",
    "vision": "vit, dinov2 and clip_vision_model",
    "audio": "whisper, wav2vec2 and audio-spectrogram-transformer",
}


def towers_of(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """Return the configs of the encoders that a composite checkpoint holds, by their modality."""
    declared = _COMPOSITES.get(config.model_type)
    if declared is not None:
        return {tower: getattr(config, name) for tower, name in declared.items()}
    found: dict[str, PreTrainedConfig] = {}
    # Models of this library hold an encoder, too, but are none.
    if config.model_type in _FAMILIES or type(config).__module__.startswith("hf_any3d."):
        return found
    for tower, names in _TOWER_CONFIGS.items():
        # Some nest those that think beside those that talk.
        for holder in (config, getattr(config, "thinker_config", None)):
            for name in names:
                inner = getattr(holder, name, None)
                if isinstance(inner, PreTrainedConfig) and tower not in found:
                    found[tower] = inner
    return found


_TOWER_CONFIGS = {
    "text": ("text_config", "language_config", "llm_config"),
    "vision": ("vision_config",),
    "audio": ("audio_config", "speech_config", "encoder_config"),
}


def select_tower(config: PreTrainedConfig, tower: str | None) -> PreTrainedConfig:
    """Return the config of the tower to use: a sub-config for composite checkpoints, which need `tower`, or itself."""
    towers = towers_of(config)
    if len(towers) == 1 and tower is None:
        config = next(iter(towers.values()))
    elif towers:
        if tower not in towers:
            raise UnsupportedEncoder(
                f"a '{config.model_type}' checkpoint holds several encoders: tower={tower!r}, "
                f"expected one of {', '.join(map(repr, towers))}"
            )
        # From here on, the tower is an encoder like any other.
        config = towers[tower]
    family = find_family(config)
    # An encoder of one tower needs no choice; a wrong one is refused rather than passed over.
    if tower not in (None, family.tower):
        raise UnsupportedEncoder(
            f"tower={tower!r} does not fit: '{config.model_type}' is a {family.tower} encoder; leave tower out"
        )
    return config
