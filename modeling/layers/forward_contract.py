"""Forward passes that follow the conventions of transformers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput, TransformersKwargs

if TYPE_CHECKING:
    pass


class PointTokensMixin:
    """For `PreTrainedModel` classes whose base model has an `input_tokens` module; declares what they all support.

    `get_input_embeddings` returns that module, an `nn.Identity` unless `set_input_embeddings` replaced it, and
    `enable_input_require_grads` and NEFTune work on its output. There is no vocabulary.
    """

    main_input_name = "points"
    input_modalities = ("point_cloud",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _input_embed_layer = "input_tokens"

    @functools.cached_property
    def accepts_loss_kwargs(self) -> bool:
        """True if Trainer may pass `num_items_in_batch`: not to a `forward` without `strict_forward`."""
        return getattr(self.forward, "scales_loss", False)

    def enable_input_require_grads(self) -> None:
        """Make the tokens that enter the first layer require gradients, even if nothing before it is trained."""
        # transformers' own version would look for the word embeddings of encoders inside the model.
        entry = self.get_input_embeddings()
        hook = entry.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        self._require_grads_hooks = [hook]
        self._require_grads_hook = hook

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        # transformers passes a partial of `checkpoint` with the keywords that were chosen.
        function = kwargs.get("gradient_checkpointing_func", args[0] if args else checkpoint)
        # Re-entrant checkpoints pass no gradient to adapters in a layer unless its input requires one, and the input
        # of the first layer does not if only adapters are trained.
        if enable and getattr(function, "keywords", {}).get("use_reentrant", True):
            # An autoencoder without a teacher has no layers.
            if hasattr(self.base_model, self._input_embed_layer) and not getattr(self, "_require_grads_hooks", None):
                self.enable_input_require_grads()
                self._requires_grads_for_checkpoints = True
        elif getattr(self, "_requires_grads_for_checkpoints", False):
            self.disable_input_require_grads()
            self._requires_grads_for_checkpoints = False


@dataclass
class PointFeaturesOutput(ModelOutput):
    """Features of point clouds, from a model without attention.

    Args:
        last_hidden_state: `(batch, tokens, hidden)`, a feature of each point, center or patch.
        pooler_output: `(batch, features)`, input of the heads.
        centers: `(batch, tokens, 3)`, their positions in the units of the input.
        hidden_states: On request, the input and the output of each layer or level.
        attentions: Always None.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class NoAttentionMixin(PointTokensMixin):
    """`PointTokensMixin` for models without attention, whose layers have batch norms.

    Layers cannot be recomputed: their norms would measure a batch twice.
    """

    config: PreTrainedConfig
    supports_gradient_checkpointing = False
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False

    def returns_states(self, output_hidden_states: bool | None, output_attentions: bool | None) -> bool:
        """Return whether to return hidden states; the call overrides the config."""
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError(f"output_attentions=True: {self.config.model_type} has no attention; expected False")
        return bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)


CACHE = fields(BaseModelOutputWithPast)[1].name
"""The cache in outputs and arguments of language models: `past_key_values`, or `cache` from transformers 5.24 on."""
TRANSFORMERS_KEYWORDS = frozenset(TransformersKwargs.__annotations__)
"""Keywords that transformers may pass to any of its models; each layer uses those it supports."""
LOSS_KEYWORDS = frozenset(inspect.signature(ForCausalLMLoss).parameters) - {"logits", "labels", "vocab_size", "kwargs"}
"""Keywords that language models pass on to their loss, such as `shift_labels`."""
ARGUMENTS = {
    "points": "Clouds `(batch, points, in_channels)`, xyz first.",
    "point_mask": "`(batch, points)`, False where a cloud is filled up to the length of the longest.",
    "points_mask": "The same where clouds of fewer points are a batch with larger ones.",
    "grid_coord": "Cells of the points `(batch, points, 3)`, as the processor makes them; None to "
    "sample the points on a grid here.",
    "inverse": "`(batch, original points)`, the point that stands for each original one; outputs are of those.",
    "point_index": "Centers and neighbors of the points, as `PointIndexer` computes them; None to compute them here.",
    "category": "Category numbers `(batch,)`; may be left out if the model has only one category.",
    "input_ids": "Texts `(texts, words)`, from `text_tower.tokenize`.",
    "attention_mask": "`(texts, words)`, 0 for padding.",
    "text_embeds": "Embedded texts `(texts, text width)` instead of both.",
    "text_labels": "Labels of the texts `(texts,)`; by default the n-th text has the label of the n-th cloud.",
    "text_mask": "`(batch, texts)`, True for the texts of a cloud in the loss; by default those that name a point.",
    "labels": "Class numbers of clouds `(batch,)`, what else `classification_loss` takes for the config's "
    "`problem_type`, or class numbers of points `(batch, points)`; -100 is ignored. With them `loss` is returned.",
    "return_loss": "Whether to return the loss.",
    "output_layers": "Numbers of blocks, from 0, whose outputs are returned too.",
    "output_hidden_states": "Whether to return the inputs and outputs of the layers, or the indices of some; None for "
    "the config's choice.",
    "output_attentions": "Whether to return the attention weights, which only eager attention does.",
}
"""Arguments that forward passes of models have in common; `strict_forward` adds them to the docstring."""
LANGUAGE_ARGUMENTS = {
    "input_ids": "`(batch, tokens)`, with placeholders for clouds.",
    "attention_mask": "`(batch, tokens)`, 0 where a token is padding.",
    "position_ids": "`(batch, tokens)`; by default each token's index, including padding.",
    CACHE: "Cache of the preceding tokens.",
    "inputs_embeds": "`(batch, tokens, text hidden)` in place of `input_ids`, including the clouds' tokens.",
    "labels": "`(batch, tokens)`, -100 for ignored tokens.",
    "point_features": "Output of `get_point_features`, in place of `points`.",
    "mm_encoder_outputs": 'The same as `generate` passes it: `pooler_output` of "point".',
    "use_cache": "Whether to return a cache.",
    "logits_to_keep": "Number of last tokens, or indices of tokens, whose logits are computed; 0 for all.",
    "kwargs": "Passed on to the language model, if it or transformers supports them, such as `shift_labels`.",
}
"""The same for models that write."""
OUTPUT_KEYWORDS = ("output_hidden_states", "output_attentions")


def strict_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make `forward` refuse unknown keywords and follow `return_dict` and `output_hidden_states` as in transformers.

    `output_hidden_states` may be the index of one layer's states or a list of indices, negative ones from the end;
    the others are then None, as in transformers. Both are read from the call, else from the config.

    A keyword that is None counts as not given: PEFT passes `attention_mask=None` and the like to every model. The
    `**kwargs` of a head are `output_hidden_states` and `output_attentions`, which it passes on to the model below;
    models that write check theirs themselves, see `check_keywords`.

    With `num_items_in_batch`, which Trainer passes if this batch is a part of a larger one, the loss is the part's
    share in the mean over all of that batch: parts may have different numbers of clouds or labeled points.
    """
    parameters = inspect.signature(forward).parameters
    # Without `self`
    names = tuple(parameters)[1:]
    writes = "inputs_embeds" in parameters
    known = frozenset(OUTPUT_KEYWORDS if "kwargs" in names else ()) | frozenset(names) - {"kwargs"}

    @functools.wraps(forward)
    def wrapper(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        return_dict = kwargs.pop("return_dict", None)
        if return_dict is None:
            return_dict = self.config.return_dict
        chosen = kwargs.get("output_hidden_states")
        if chosen is None and "output_hidden_states" in known:
            chosen = self.config.output_hidden_states
        chooses_layers = chosen is not None and not isinstance(chosen, bool)
        # The model computes all states, so that what it calls inside need not know of indices.
        if chooses_layers:
            kwargs["output_hidden_states"] = True
        items = None
        if not writes:
            # Trainer passes the number of labels of all parts of a batch; language models scale their loss themselves.
            items = kwargs.pop("num_items_in_batch", None)
            kwargs = check_keywords(type(self).__name__, kwargs, known)
        output = forward(self, *args, **kwargs)
        if items is not None and output.get("loss") is not None:
            # Labels may have been passed by position.
            batch = dict(zip(names, args, strict=False)) | kwargs
            # The loss is a mean over labels that are not -100; without any, over rows. Compared on the device, as a
            # Python number would wait for it in every step.
            labels = batch.get("labels")
            is_tensor = isinstance(labels, torch.Tensor)
            count = (labels != -100).sum() if is_tensor else len(batch[self.main_input_name])
            output["loss"] = output["loss"] * count / torch.as_tensor(items).clamp(min=1)
        if chooses_layers and output.get("hidden_states") is not None:
            # Hidden states that were not asked for are None; negative numbers count from the end.
            states = output["hidden_states"]
            indices = [chosen] if isinstance(chosen, int) else chosen
            # A range refuses numbers of layers that there are not, as a list would.
            kept = {range(len(states))[index] for index in indices}
            output["hidden_states"] = tuple(state if index in kept else None for index, state in enumerate(states))
        return output if return_dict or isinstance(output, tuple) else output.to_tuple()

    wrapper.scales_loss = not writes  # pyright: ignore[reportFunctionMemberAccess]
    wrapper.__doc__ = _documented(forward.__doc__, names, writes)
    return wrapper


def _documented(docstring: str | None, names: Sequence[str], writes: bool) -> str | None:
    """Add the descriptions of arguments that forward passes have in common to a docstring without its own."""
    if docstring is None or "Args:" in docstring:
        return docstring
    texts = ARGUMENTS | LANGUAGE_ARGUMENTS if writes else ARGUMENTS
    # A dictionary, as some forward passes name the output keywords themselves.
    described = dict.fromkeys(name for name in (*names, *OUTPUT_KEYWORDS) if name in texts)
    lines = [f"    {name}: {texts[name]}" for name in described]
    return "\n".join([inspect.cleandoc(docstring), "", "Args:", *lines])


def rejects_unknown_keywords(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an inherited `forward` of a transformers model, which would ignore unknown keywords."""
    # Language models pass the keywords of the loss to their body too.
    known = forward_keywords(forward) | LOSS_KEYWORDS | {"return_dict"}
    computes_loss = "labels" in known

    @functools.wraps(forward)
    def wrapper(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        kwargs = check_keywords(type(self).__name__, kwargs, known)
        if computes_loss and kwargs.get("labels") is None and kwargs.get("shift_labels") is not None:
            kwargs["labels"] = kwargs["shift_labels"]  # not read, but without any there is no loss
        requested_outputs(self.config, None, kwargs.get("output_attentions"), self.config._attn_implementation)
        return forward(self, *args, **kwargs)

    return wrapper


def check_keywords(name: str, keywords: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Reject unknown keywords of a call of the model `name`; those that are None are dropped."""
    unknown = [key for key, value in keywords.items() if key not in known and value is not None]
    if unknown:
        raise TypeError(
            f"{name}.forward() got an unexpected keyword argument '{unknown[0]}'; expected some of "
            f"{', '.join(sorted(known - {'kwargs'}))}"
        )
    return {keyword: value for keyword, value in keywords.items() if keyword in known}


@functools.cache
def forward_keywords(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the keywords that a transformers model's `forward` takes or passes on, to layers and loss."""
    parameters = inspect.signature(forward).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD} - {"self"}
    # Where it is called `cache`, transformers still takes the name that it had.
    named |= {"past_key_values"} if CACHE in named else set()
    return frozenset(named) | TRANSFORMERS_KEYWORDS | (LOSS_KEYWORDS if "labels" in named else frozenset())


def requested_outputs(
    config: PreTrainedConfig, output_hidden_states: bool | None, output_attentions: bool | None, attention: str | None
) -> tuple[bool, bool]:
    """Return whether to return hidden states and attention weights: the call overrides the config.

    Only `attention="eager"` returns weights, so others are refused with `output_attentions`.
    """
    hidden_states = bool(config.output_hidden_states) if output_hidden_states is None else output_hidden_states
    attentions = config.output_attentions if output_attentions is None else output_attentions
    if attentions and attention != "eager":
        raise ValueError(f"output_attentions=True with attn_implementation={attention!r}; only 'eager' returns them")
    return hidden_states, bool(attentions)


class AttentionRecorder:
    """Collect the attention weights that a module inside each layer returns along with its output.

    Run the layers inside this context manager, and read `weights` before leaving it. Unlike transformers'
    `capture_outputs`, it works on layers of any model, with adapters around them. `kinds` are the classes of the
    modules to record, and the index of the weights in their outputs.
    """

    def __init__(self, layers: Sequence[nn.Module], kinds: Mapping[type[nn.Module], int], owner: str):
        self._recorded: list[torch.Tensor | None] = [None] * len(layers)
        self._owner = owner
        # The first module of a recorded kind in each layer, wherever adapters have moved it; None if it has none.
        self._places = [
            next(((m, index) for m in layer.modules() for kind, index in kinds.items() if isinstance(m, kind)), None)
            for layer in layers
        ]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> AttentionRecorder:
        def record(number: int, index: int, module: nn.Module, args: tuple, output: Any) -> None:
            # Other implementations than eager return the output alone, or None in the place of the weights.
            self._recorded[number] = output[index] if isinstance(output, tuple) and len(output) > 1 else None

        self._handles = [
            place[0].register_forward_hook(functools.partial(record, number, place[1]))
            for number, place in enumerate(self._places)
            if place is not None
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """Attention weights of each layer, `(batch, heads, queries, keys)`."""
        # Asked for and not there is an error: a tuple with None would fail far from its cause.
        if any(weights is None for weights in self._recorded):
            raise ValueError(f"output_attentions=True: the layers of '{self._owner}' returned no attention weights")
        return tuple(self._recorded)
