"""What every forward pass here keeps of transformers' contract.

- `honours_contract` wraps `forward`: unknown keywords are a TypeError, `return_dict` is honoured. `rejects_unknown_keywords`
  wraps one that is inherited from transformers.
- `requested_outputs` settles `output_hidden_states` and `output_attentions` between the call and the config.
- `AttentionRecorder` collects the attention weights of layers that give nothing but hidden states.
- `onloaded` brings in weights that accelerate keeps on the CPU or on disk until their module is called, and
  `is_unmodified` says where a parent may read a layer's weights instead of calling it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import TransformersKwargs

TRANSFORMERS_KEYWORDS = frozenset(TransformersKwargs.__annotations__)
"""What transformers may hand to any of its own models, whose layers pick what they know."""


def honours_contract(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `forward` of a model: refuse unknown keywords, and honour `return_dict` of the call and of the config.

    A keyword that is None counts as not given: PEFT passes `attention_mask=None` and the like to every model. Where
    `forward` takes `**kwargs`, it checks them itself, see `check_keywords`.

    Raises:
        TypeError: For a keyword that `forward` does not have; the text names those that it has.
    """
    parameters = inspect.signature(forward).parameters
    known = frozenset(parameters) - {"self"}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())

    @functools.wraps(forward)
    def wrapper(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        return_dict = kwargs.pop("return_dict", None)
        if return_dict is None:
            return_dict = self.config.return_dict
        if not takes_any:
            kwargs = check_keywords(type(self).__name__, kwargs, known)
        output = forward(self, *args, **kwargs)
        return output if return_dict or isinstance(output, tuple) else output.to_tuple()

    return wrapper


def rejects_unknown_keywords(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `forward` of a transformers model, which swallows any keyword, as a model of ours inherits it.

    Raises:
        TypeError: For a keyword that neither `forward` nor transformers knows.
        ValueError: For attention weights of an attention that never makes them.
    """
    parameters = inspect.signature(forward).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    known = frozenset(named - {"self"}) | TRANSFORMERS_KEYWORDS | {"return_dict"}

    @functools.wraps(forward)
    def wrapper(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        kwargs = check_keywords(type(self).__name__, kwargs, known)
        requested_outputs(self.config, None, kwargs.get("output_attentions"), self.config._attn_implementation)
        return forward(self, *args, **kwargs)

    return wrapper


def check_keywords(name: str, given: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Refuse keywords that a model does not know, and leave out unknown ones that are None.

    Args:
        name: Of the model.
        given: The keywords of a call.
        known: Those that mean something.

    Raises:
        TypeError: Naming the keyword and what would be known.
    """
    kept = {}
    for word, value in given.items():
        if word in known:
            kept[word] = value
        elif value is not None:
            raise TypeError(
                f"{name}.forward() got an unexpected keyword argument '{word}'; expected some of "
                f"{', '.join(sorted(known - {'kwargs'}))}"
            )
    return kept


@functools.cache
def forward_keywords(model_class: type[PreTrainedModel]) -> frozenset[str]:
    """What a transformers model's forward pass knows by name, and what its layers may be handed through it."""
    parameters = inspect.signature(model_class.forward).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    return frozenset(named - {"self"}) | TRANSFORMERS_KEYWORDS


def requested_outputs(
    config: PreTrainedConfig,
    output_hidden_states: bool | None,
    output_attentions: bool | None,
    attention: str | None,
) -> tuple[bool, bool]:
    """Whether hidden states and attention weights are wanted, by the call or else by the config.

    Args:
        config: The model's.
        output_hidden_states: As the call has it.
        output_attentions: As the call has it.
        attention: The attention that runs in the layers.

    Raises:
        ValueError: If attention weights are wanted of an attention that never makes them, or some hidden states only.
    """
    hidden_states = bool(config.output_hidden_states) if output_hidden_states is None else output_hidden_states
    attentions = config.output_attentions if output_attentions is None else output_attentions
    if not isinstance(hidden_states, bool):
        raise ValueError(f"output_hidden_states={hidden_states!r}; expected True or False, for all or none")
    if attentions and attention != "eager":
        raise ValueError(
            f"output_attentions=True with attn_implementation={attention!r}, which keeps no attention weights; "
            "expected 'eager', by from_pretrained(…, attn_implementation='eager') or set_attn_implementation('eager')"
        )
    return hidden_states, bool(attentions)


class AttentionRecorder:
    """Collects the attention weights that a module inside each layer returns beside its output.

    Use it as a context around the layers' run, and read `weights` in it.

    Args:
        layers: The layers, adapters around them included.
        kinds: Classes of the modules to listen to, and which of their outputs are the weights.
        owner: Name of the model, for messages.

    Raises:
        ValueError: If a layer has no such module.
    """

    def __init__(self, layers: Sequence[nn.Module], kinds: Mapping[type[nn.Module], int], owner: str):
        self._heard: list[torch.Tensor | None] = [None] * len(layers)
        self._owner = owner
        self._places = [
            next(((m, index) for m in layer.modules() for kind, index in kinds.items() if isinstance(m, kind)), None)
            for layer in layers
        ]
        if None in self._places:
            raise ValueError(f"output_attentions=True: the layers of '{owner}' do not give their attention weights")
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> AttentionRecorder:
        def listen(number: int, index: int) -> Callable[..., None]:
            def hear(module: nn.Module, args: tuple, output: Any) -> None:
                self._heard[number] = output[index] if isinstance(output, tuple) and len(output) > 1 else None

            return hear

        self._handles = [
            module.register_forward_hook(listen(number, index)) for number, (module, index) in enumerate(self._places)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """The weights of each layer, `(batch, heads, queries, keys)`.

        Raises:
            ValueError: If a layer gave none.
        """
        if any(weights is None for weights in self._heard):
            raise ValueError(f"output_attentions=True: the layers of '{self._owner}' kept their attention weights")
        return tuple(self._heard)


def attention_kinds(encoder: PreTrainedModel) -> dict[type[nn.Module], int]:
    """Classes of the modules in an encoder that give attention weights, and which output they are.

    Empty where transformers records none of this encoder's.
    """
    found: dict[type[nn.Module], int] = {}
    for model in encoder.modules():
        recorded = (getattr(type(model), "_can_record_outputs", None) or {}).get("attentions")
        for entry in recorded if isinstance(recorded, list) else [recorded]:
            kind = getattr(entry, "target_class", entry)
            if isinstance(kind, type):
                found[kind] = getattr(entry, "index", 1)
    return found


@contextmanager
def onloaded(*modules: nn.Module) -> Iterator[None]:
    """Bring in the modules' own weights where accelerate keeps them on the CPU or on disk.

    accelerate loads a module's weights when the module is called. Weights that are read without a call, such as a
    table of positions, are read inside this context; what was made of them may be used behind it.
    """
    away = [
        module
        for module in modules
        if hasattr(module, "_hf_hook") and any(own is not None and own.is_meta for own in module._parameters.values())
    ]
    for module in away:
        module._hf_hook.pre_forward(module)
    try:
        yield
    finally:
        for module in away:
            module._hf_hook.post_forward(module, torch.empty(0))


_PLAIN = (nn.Linear, nn.BatchNorm1d, nn.GroupNorm)


def is_unmodified(*modules: nn.Module) -> bool:
    """Whether parents may read the weights of these layers and norms instead of calling them.

    Not so where an adapter stands in their place, where hooks listen, or where accelerate loads weights at each call:
    then only a call has the effect that everybody expects.
    """
    return all(
        type(module) in _PLAIN
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in vars(module)
        for module in modules
    )
