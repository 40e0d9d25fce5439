"""A copy of an encoder's structure with random weights, and what its own forward pass gives its layers.

Discovery runs it to learn what a checkpoint of this structure needs. It holds no large weights: word vectors are given
from outside, and of layers that are built alike only the first one gets weights; the others hand on their input.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from hf_any3d.modeling.encoders.model_classes import build_from_config
from hf_any3d.modeling.encoders.positions import hidden_of, image_grid, pair_of, patch_of
from hf_any3d.modeling.encoders.registry import UnsupportedEncoder

# Two clouds, so that the axis of the batch can be told from others of length 1.
BATCH = 2
# A few words; a prime number, so that no other axis has this length by chance.
WORDS = 13
_ROOM = 32
# In a row of a small image
_FEW_PATCHES = 5
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Above this number of parameters in a layer, its feed-forward part is built narrower; of experts there are many.
_LARGE_LAYER = 30_000_000
_NARROW = 256
_NARROW_EXPERT = 16


@dataclass
class Call:
    """One call of a layer: its arguments by name, the name of the tokens among them, and its output."""

    layer: nn.Module
    arguments: dict[str, Any]
    main: str
    output: Any

    @property
    def tokens(self) -> torch.Tensor:
        """Tokens that the layer gets, `(batch, tokens, hidden)`."""
        return self.arguments[self.main]


@dataclass
class Step:
    """A module outside of the layers that has run: its path, first tensor and output."""

    path: str
    source: Any
    output: Any


@dataclass
class OwnPass:
    """Calls of the layers in the encoder's own forward pass, and modules that run before and after them."""

    calls: list[Call]
    before: list[Step]
    after: list[Step]


def bind_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; positional ones without a name are left out."""
    signature = inspect.signature(type(module).forward)
    values = {}
    for name, value in list(signature.bind(module, *args, **kwargs).arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            values.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            values[name] = value
    return values


def is_norm(module: nn.Module, width: int) -> bool:
    """Return whether a module has nothing but one or two vectors of `width`, as norms have."""
    weights = list(module.parameters(recurse=False))
    return not list(module.children()) and 1 <= len(weights) <= 2 and all(w.shape == (width,) for w in weights)


class Skeleton:
    """Structure of the encoder of a config, ready to run.

    Args:
        config: Config of the encoder, or of an encoder-decoder, of which the encoder is taken.
        trial: One of `trial_configs`, whose model runs the layers; None for the encoder's own.

    `prepare` gives it weights; then it can run.

    Raises:
        UnsupportedEncoder: It has no list of layers.
    """

    def __init__(self, config: PreTrainedConfig, trial: PreTrainedConfig | None = None):
        config = copy.deepcopy(config)
        _make_room(config)
        self._build(config)
        narrow = copy.deepcopy(config)
        if max(_size(layer) for layer in self.layers) > _LARGE_LAYER and _narrow_feed_forward(narrow):
            with suppress(UnsupportedEncoder):  # where other settings depend on the width
                self._build(narrow)
        if trial is not None:
            layers = self.layers
            _make_room(trial)
            self._build(trial)
            for number, layer in enumerate(layers):
                self.layers[number] = layer
        self.config = getattr(self.part, "config", config)
        self.modality = modality_of(self.part)

    def prepare(self) -> None:
        """Give weights to what has to run.

        Raises:
            UnsupportedEncoder: It reads neither words, nor images, nor sound.
        """
        if {"input_ids", "pixel_values"} <= set(inspect.signature(self.part.forward).parameters):
            raise UnsupportedEncoder("it reads words and images by one encoder, which is not one of words alone")
        self.words = _word_embedding(self.part) if self.modality == "text" else None
        if self.words is not None:
            # All words alike cost no memory; `run` gives their vectors.
            zeros = torch.zeros(1, self.words.weight.shape[1]).expand(self.words.weight.shape)
            self.words._parameters["weight"] = nn.Parameter(zeros, requires_grad=False)
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        self.outside = {name: m for name, m in self.part.named_modules() if name and id(m) not in inside}
        self.firsts = _first_of_each_kind(self.layers)
        self.kinds = sorted(set(self.firsts))
        generator = torch.Generator().manual_seed(0)
        for number in self.kinds:
            for module in self.layers[number].modules():
                _draw_weights(module, generator)
        self.randomize(0)
        self.model.eval()

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the encoder's weights by their names, without those of a decoder."""
        return {name: weight.shape for name, weight in self.part.named_parameters()}

    def _build(self, config: PreTrainedConfig) -> None:
        try:
            self.model = _build_without_weights(config)
        except ImportError as error:
            package = re.search(r"requires the (\S+) library", str(error))
            missing = package[1] if package else error.name
            raise UnsupportedEncoder(f"it needs the package {missing}, which is not installed") from error
        except Exception as error:  # whatever a model raises of its settings
            raise UnsupportedEncoder(f"transformers builds no model of its config ({words_of(error)})") from error
        self.prefix, self.part = encoder_half(self.model)
        self.layers_path, self.layers = _largest_stack(self.part)

    def randomize(self, seed: int) -> None:
        """Draw new weights outside of the layers."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.outside.values():
            if module is self.words:
                continue
            _draw_weights(module, generator)
        _draw_weights(self.part, generator)

    @property
    def drawn(self) -> set[nn.Module]:
        """The layers with weights: the first of each kind."""
        return {self.layers[number] for number in self.kinds}

    @torch.no_grad()
    def run(
        self,
        length: int = WORDS,
        seed: int | None = 0,
        stubbed: bool = False,
        erase_input: bool = False,
        alike: bool = False,
    ) -> OwnPass:
        """Run the encoder on input of its own kind.

        Args:
            length: Number of words, for text.
            seed: Of the random word vectors; None for zeros.
            stubbed: Whether all layers hand on their input.
            erase_input: Whether patches or frames are zeros behind the convolution that embeds them.
            alike: Whether all words of a text have one vector.
        """
        failures: list[tuple[int, Exception, dict[str, Any]]] = []
        for values in own_inputs(self.part, self.modality, length):
            seen = OwnPass([], [], [])
            try:
                self._run(values, seen, seed, stubbed, erase_input, alike)
            except UnsupportedEncoder:
                raise
            except Exception as error:
                # What an encoder does behind its layers, such as merging patches, does not concern tokens.
                if len(seen.calls) < len(self.layers) or seen.calls[-1].output is None:
                    failures.append((len(seen.before) + len(seen.calls), error, values))
                    continue
            return seen
        # The form with which it comes furthest is its own.
        _, error, values = max(failures, key=lambda failure: failure[0])
        given = f"{length} words" if self.modality == "text" else _INPUT_WORDS[self.modality]
        own_error = self._error_by_itself(values)
        missing = re.findall(r"'(\w+)'", str(own_error).partition("missing")[2])
        if isinstance(own_error, TypeError) and missing:
            raise UnsupportedEncoder(f"its forward pass needs {', '.join(missing)} beside {given}") from error
        if own_error is not None:
            raise UnsupportedEncoder(f"its own forward pass fails on {given} alone ({words_of(own_error)})") from error
        step = "layers hand on their tokens" if stubbed else "it is watched"
        if erase_input or seed is None:
            step = "its input is zeros"
        raise UnsupportedEncoder(
            f"its own forward pass runs on {given}, but fails in the trial where {step} ({words_of(error)})"
        ) from error

    def _error_by_itself(self, values: dict[str, Any]) -> Exception | None:
        """Return what the encoder's own forward pass raises when nothing of it is watched or replaced."""
        for layer, first in zip(self.layers, self.firsts, strict=True):
            # Layers of a kind share weights here, which takes no memory.
            for module, other in zip(layer.modules(), self.layers[first].modules(), strict=True):
                module._parameters.update(other._parameters)
        try:
            with self._given_words(0, False):
                self.part(**values)
        except Exception as error:  # whatever a model raises
            return error
        return None

    def _run(
        self, values: dict, seen: OwnPass, seed: int | None, stubbed: bool, erase_input: bool, alike: bool
    ) -> None:
        names = {id(module): name for name, module in self.outside.items()}
        hooks = []

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            source = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
            (seen.after if seen.calls else seen.before).append(Step(names[id(module)], source, hidden_of(output)))

        for module in self.outside.values():
            hooks.append(module.register_forward_hook(note, with_kwargs=True))
        if erase_input and self.words is None:
            hooks += [module.register_forward_hook(_erase) for module in self._embedders()]
        try:
            with self._given_words(seed, alike), self._watched_layers(seen.calls, stubbed):
                self.part(**values)
        finally:
            for hook in hooks:
                hook.remove()

    def _embedders(self) -> list[nn.Module]:
        """Return what turns pixels or sound into tokens: convolutions, else the first linear layer."""
        convolutions = [module for module in self.outside.values() if isinstance(module, CONVOLUTIONS)]
        if convolutions:
            return convolutions if self.modality == "audio" else convolutions[:1]
        return [module for module in self.outside.values() if isinstance(module, nn.Linear)][:1]

    @contextmanager
    def _given_words(self, seed: int | None, alike: bool) -> Iterator[None]:
        """Let the word embedding return random vectors, or zeros, whatever the words are."""
        if self.words is None:
            yield
            return

        def give(module: nn.Module, args: tuple, output: Any) -> Any:
            # Some embeddings return more than the vectors.
            shape = hidden_of(output).shape
            given = torch.zeros(shape)
            if seed is not None:
                drawn = torch.randn(
                    *shape[:-2], 1 if alike else shape[-2], shape[-1], generator=torch.Generator().manual_seed(seed)
                )
                given = given + drawn
            return type(output)([given, *output[1:]]) if isinstance(output, (tuple, list)) else given

        hook = self.words.register_forward_hook(give)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _watched_layers(self, calls: list[Call], stubbed: bool) -> Iterator[None]:
        """Note the calls of the layers; those without weights, or all, hand on their input.

        They do so in the form of the first layer's output. Not by hooks, as some encoders call `layer.forward`.
        """

        def watched(number: int, forward: Callable) -> Callable:
            def run(*args: Any, **kwargs: Any) -> Any:
                layer = self.layers[number]
                arguments = bind_arguments(layer, args, kwargs)
                main = next((name for name, value in arguments.items() if isinstance(value, torch.Tensor)), "")
                calls.append(call := Call(layer, arguments, main, None))
                if stubbed or self.firsts[number] != number:
                    call.output = _hand_on(call.tokens, self._output_form)
                else:
                    call.output = forward(*args, **kwargs)
                    if number == 0:
                        self._output_form = call.output
                return call.output

            return run

        try:
            for number, layer in enumerate(self.layers):
                layer.__dict__["forward"] = watched(number, layer.forward)
            yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("forward", None)

    _output_form: Any = None


_INPUT_WORDS = {"text": "words", "vision": "an image", "audio": "a recording"}


def _word_embedding(part: PreTrainedModel) -> nn.Module:
    try:
        words = part.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        words = None
    if not isinstance(getattr(words, "weight", None), torch.Tensor) or words.weight.ndim != 2:
        takes = list(inspect.signature(part.forward).parameters)
        if "input_ids" in takes:
            raise UnsupportedEncoder("it names no table of word vectors, of which its tokens would be made")
        raise UnsupportedEncoder(f"its forward pass takes {takes[0]}, neither words, nor an image, nor a recording")
    return words


def words_of(error: BaseException) -> str:
    """Return the message of an error of an encoder, for the reason of a refusal."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]


def _erase(module: nn.Module, args: tuple, output: Any) -> Any:
    # Some convolutions return a mask beside what they embed.
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


def _hand_on(tokens: torch.Tensor, form: Any) -> Any:
    if isinstance(form, Mapping):
        return {name: tokens if number == 0 else None for number, name in enumerate(form)}
    if isinstance(form, (tuple, list)):
        parts = [tokens, *[None] * (len(form) - 1)]
        return type(form)(*parts) if hasattr(form, "_fields") else type(form)(parts)
    return tokens


def _build_without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    # Also while another model is being opened, on the meta device and with initial values switched off. Buffers are
    # computed as always: rotary frequencies and sinusoids are not drawn.
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    # Where there are several models without a head, the auto class looks for one in this list.
    config.architectures = []

    def forget(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        if weight is None or weight.is_meta:
            return None
        return nn.Parameter(weight.to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(forget)
    try:
        with torch.device("cpu"), no_init_weights():
            return build_from_config(config).eval()
    finally:
        handle.remove()


def encoder_half(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """Return the encoder of an encoder-decoder with its path, and any other model as it is."""
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        half = model.get_encoder()
        for name, module in model.named_modules():
            if name and module is half:
                return name, half
    return "", model


def modality_of(model: PreTrainedModel) -> str:
    """Return whether a model reads text, images or sound."""
    takes = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    if main == "input_ids" and ("input_ids" in takes or "inputs_embeds" in takes):
        return "text"
    if any(name.startswith("pixel_values") for name in (main, *takes)):
        return "vision"
    if any(name in ("input_features", "input_values") for name in (main, *takes)):
        return "audio"
    return "text"


def is_stack(module: nn.Module) -> bool:
    """Return whether a module is a list of layers with parts: a ModuleList, or a Sequential of modules alike."""
    if isinstance(module, nn.Sequential):
        is_list = len(module) > 1 and len({type(part) for part in module}) == 1
    else:
        is_list = isinstance(module, nn.ModuleList) and len(module) > 0
    # Tables and single matrices are no layers.
    return is_list and any(True for _ in module[0].children())


def _largest_stack(part: PreTrainedModel) -> tuple[str, Any]:
    stacks: list[tuple[str, Any]] = []
    for name, module in part.named_modules():
        # Not those inside another one, such as experts.
        if is_stack(module) and not any(name.startswith(f"{outer}.") for outer, _ in stacks):
            stacks.append((name, module))
    if not stacks:
        raise UnsupportedEncoder("it has no list of layers with attention between tokens")
    path, layers = max(stacks, key=lambda stack: _size(stack[1]))
    if isinstance(layers[0], nn.ModuleList):
        raise UnsupportedEncoder("its layers come in several lists, one for each stage")
    return path, layers


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _make_room(config: PreTrainedConfig) -> None:
    """Let a copy take the words of a run, if there is no place for them, as in encoders stored without embeddings."""
    for name in ("vocab_size", "max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and 0 < value < _ROOM:
            setattr(config, name, _ROOM)
    if getattr(config, "mask_ratio", None):
        config.mask_ratio = 0.0  # of patches that are hidden in pretraining


def _narrow_feed_forward(config: PreTrainedConfig) -> bool:
    """Make the feed-forward parts of a config narrower, which no check depends on; return whether anything changed."""
    is_changed = False
    has_experts = any(
        "expert" in name and isinstance(value, int) and value > 1 for name, value in vars(config).items()
    )
    for name, value in list(vars(config).items()):
        is_width = any(word in name for word in ("intermediate", "ffn", "d_ff", "n_inner", "mlp_dim"))
        width = _NARROW_EXPERT if "moe" in name or "expert" in name or has_experts else _NARROW
        if is_width and isinstance(value, int) and value > width:
            setattr(config, name, width)
            is_changed = True
    return is_changed


def _first_of_each_kind(layers: Any) -> list[int]:
    """Return for each layer the first one of its kind: modules and settings in them, without their number."""
    first: dict[Any, int] = {}
    firsts = []
    for number, layer in enumerate(layers):
        parts = []
        for name, module in layer.named_modules():
            settings = []
            for key, value in vars(module).items():
                is_number = any(word in key for word in ("idx", "index", "layer_id", "layer_number"))
                if isinstance(value, (bool, int, str, type(None))) and not key.startswith("_") and not is_number:
                    settings.append((key, value))
            shapes = tuple((key, tuple(weight.shape)) for key, weight in module.named_parameters(recurse=False))
            parts.append((name, type(module), tuple(settings), shapes))
        firsts.append(first.setdefault(tuple(parts), number))
    return firsts


def _draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    for name, weight in list(module.named_parameters(recurse=False)):
        if not weight.is_floating_point():
            continue
        if isinstance(module, nn.Embedding) and weight.shape[0] > 2**17:
            # Rows of so large a table are equal: they cost no memory.
            drawn = torch.randn(1, weight.shape[1], generator=generator).mul_(0.1).expand(weight.shape)
        else:
            drawn = torch.empty(weight.shape).uniform_(-0.2, 0.2, generator=generator)
        if weight.ndim == 1 and name.endswith("weight"):
            drawn = drawn + 1
        module._parameters[name] = nn.Parameter(drawn, requires_grad=False)


def own_inputs(part: PreTrainedModel, modality: str, length: int) -> list[dict[str, Any]]:
    """Return inputs of an encoder's own kind, in the forms that encoders take, to be tried in order."""
    takes = inspect.signature(part.forward).parameters
    config = getattr(part, "config", None)
    common: dict[str, Any] = {}
    for name, value in (("use_cache", False), ("return_dict", True)):
        if name in takes:
            common[name] = value
    if modality == "text":
        forms = [{"input_ids": torch.full((BATCH, length), _plain_word(config))}]
        # Some need a language; the first one.
        forms += [forms[0] | {name: torch.zeros(BATCH, dtype=torch.long)} for name in takes if name.startswith("lang")]
    elif modality == "vision":
        forms = _image_forms(part, takes)
    else:
        forms = _sound_forms(config, takes)
    return [common | form for form in forms]


def trial_configs(config: PreTrainedConfig) -> Iterator[tuple[PreTrainedConfig | None, bool]]:
    """Yield configs to try, and whether their input is smaller than the encoder's own; None for its own config.

    A small image or a short recording tells as much about layers that do not get its size, one frame as a video.
    """
    frame = copy.deepcopy(config)
    tubelet = getattr(config, "tubelet_size", None)
    frames = tubelet[0] if isinstance(tubelet, (list, tuple)) else tubelet or 1
    is_video = hasattr(config, "image_size") and (getattr(config, "num_frames", None) or 0) > frames
    if is_video:
        frame.num_frames = frames
    small = copy.deepcopy(frame)
    try:
        height, width = (_FEW_PATCHES * one for one in patch_of(config))
        if max(image_grid(config)) > 2 * _FEW_PATCHES:
            small.image_size = height if isinstance(config.image_size, int) else [height, width]
            yield small, True
    except (AttributeError, TypeError):  # no images, or of a size that the config does not say
        if (getattr(config, "max_source_positions", None) or 0) > _ROOM:
            small.max_source_positions = _ROOM
            yield small, True
    if is_video:
        yield frame, False
    yield None, False


def _plain_word(config: PreTrainedConfig) -> int:
    """Return the number of a word that is none of the special ones."""
    special: set[int] = set()
    for name, value in vars(config).items() if config is not None else ():
        if name.endswith("token_id") and value is not None:
            special.update(value if isinstance(value, (tuple, list)) else (value,))
    return next(number for number in range(3, 10_000) if number not in special)


def _image_size(part: PreTrainedModel, patch: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of an encoder's images, a few patches if it takes any."""
    size = getattr(part.config, "image_size", None)
    for module in part.modules():
        if size is None:
            # Of models that transformers wraps, a module says it.
            size = getattr(module, "img_size", None)
    return pair_of(size or (4 * patch[0], 4 * patch[1]))


def _image_forms(part: PreTrainedModel, takes: Any) -> list[dict[str, Any]]:
    config = part.config
    name = next((name for name in ("pixel_values", "pixel_values_videos") if name in takes), "pixel_values")
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    try:
        patch = patch_of(config)
    except AttributeError:
        patch = (16, 16)
    generator = torch.Generator().manual_seed(0)
    if "spatial_shapes" in takes:
        side = math.isqrt(getattr(config, "num_patches", 16))
        pixels = torch.randn(BATCH, side * side, channels * patch[0] * patch[1], generator=generator)
        seen = torch.ones(BATCH, side * side, dtype=torch.long)
        return [{name: pixels, "pixel_attention_mask": seen, "spatial_shapes": torch.tensor([[side, side]] * BATCH)}]
    size = _image_size(part, patch)
    image = torch.randn(BATCH, channels, *size, generator=generator)
    # For encoders of videos, as few frames as they take.
    frames = getattr(config, "num_frames", None) or 1
    forms = [{name: image}, {name: image.unsqueeze(1).expand(-1, frames, -1, -1, -1)}]
    if "noise" in takes:  # ViT-MAE leaves its patches in order only then
        count = (size[0] // patch[0]) * (size[1] // patch[1])
        forms = [form | {"noise": torch.arange(float(count)).expand(BATCH, -1)} for form in forms]
    return forms


def _sound_forms(config: PreTrainedConfig, takes: Any) -> list[dict[str, Any]]:
    bins = 80
    for name in ("num_mel_bins", "input_feat_per_channel", "n_mels", "feature_size"):
        if getattr(config, name, None):
            bins = getattr(config, name)
            break
    frames = 2 * (getattr(config, "max_source_positions", None) or 64)
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(BATCH, bins, frames, generator=generator)
    name = "input_features" if "input_features" in takes else "input_values"
    long = getattr(config, "max_length", None) or getattr(config, "num_frames", None) or frames
    spectrum = torch.randn(BATCH, long, bins, generator=generator)
    # Sound, or its spectrum as a line or an image
    spectra = [sound, sound.transpose(1, 2), spectrum.unsqueeze(1)]
    if name == "input_values":
        spectra = [torch.randn(BATCH, 4000, generator=generator), spectrum, spectrum.transpose(1, 2).unsqueeze(1)]
    forms = [{name: one} for one in spectra]
    # Some need a mask, though nothing is hidden.
    for mask in ("input_features_mask", "attention_mask"):
        if mask in takes:
            forms += [form | {mask: torch.ones(BATCH, frames, dtype=torch.long)} for form in forms]
    return forms
