"""A family for any transformer, by watching what its own forward pass does.

A small copy of the structure runs on a few words, an image or a recording of its own kind. What reaches the layers
tells where they are, which positions are added to the tokens and which arguments depend on places; what leaves them
tells which module adds the last term. Names of modules are not used; names of arguments only for masks and caches.

Nothing is taken for granted: what was read is compared with the copy's own pass, and tokens and places are exchanged
together. An encoder that answers otherwise is refused with the reason.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.fitted_rotation import BATCH_FORMS, FittedRotation
from hf_any3d.modeling.encoders.layer_arguments import (
    MASK_FORMS,
    ArgumentReader,
    LayerArguments,
    find_triangles,
)
from hf_any3d.modeling.encoders.positions import (
    LayerPass,
    PositionTable,
    TokenPlaces,
    hidden_of,
    image_grid,
    tensor_at,
)
from hf_any3d.modeling.encoders.registry import EncoderFamily, UnsupportedEncoder
from hf_any3d.modeling.encoders.skeleton import (
    BATCH,
    CONVOLUTIONS,
    WORDS,
    Call,
    OwnPass,
    Skeleton,
    Step,
    is_norm,
    trial_configs,
    words_of,
)

# Of the size of what is compared
_TOLERANCE = 1e-4
# Words in the names of modules that process tokens one after the other
_SEQUENTIAL = {"Mamba", "Mamba2", "Rwkv", "Lstm", "Rglru", "Recurrent", "Xlstm"}
_SEQUENTIAL_PAIRS = {("Delta", "Net"), ("Short", "Conv"), ("Linear", "Attention"), ("Lightning", "Attention")}


def discover(config: PreTrainedConfig) -> EncoderFamily:
    """Return the family of an encoder that none is declared for.

    Raises:
        UnsupportedEncoder: Its layers cannot process point tokens; says why.
    """
    with _apart_from_training():
        for trial, is_small in trial_configs(config):
            with suppress(UnsupportedEncoder) if trial is not None else nullcontext():
                return _Discovery(config, trial, is_small).family()


def attends_to_later_words(config: PreTrainedConfig) -> bool:
    """Return whether layers of a language model let words attend to later ones; False if it cannot be watched."""
    with _apart_from_training():
        try:
            skeleton = Skeleton(config)
            skeleton.prepare()
            calls = skeleton.run().calls
            return any(_feels_the_last(call) for call in calls if call.layer in skeleton.drawn)
        except Exception:  # whatever a model raises that needs more than words
            return False


@contextmanager
def _apart_from_training() -> Iterator[None]:
    """Run a small copy on the CPU, without gradients, and leave the program's random numbers as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        yield


def _feels_the_last(call: Call) -> bool:
    """Return whether a layer's first token feels a change of its last one."""
    arguments = {name: value for name, value in call.arguments.items() if name != call.main}
    axis = 1 if call.tokens.shape[0] == BATCH else 0
    changed = call.tokens.clone()
    # Not by one number, which norms would take away again.
    changed.select(axis, -1).add_(torch.randn(changed.shape[-1], generator=torch.Generator().manual_seed(7)))
    first, other = (hidden_of(call.layer(tokens, **arguments)) for tokens in (call.tokens.clone(), changed))
    difference = (first - other).select(axis, 0).abs().max()
    return bool(difference > _TOLERANCE * first.abs().max())


class _Discovery:
    """One discovery, step by step."""

    def __init__(self, config: PreTrainedConfig, trial: PreTrainedConfig | None = None, is_small: bool = False):
        self.config = config
        self.is_small = is_small
        self.has_table = True
        self.skeleton = Skeleton(config, trial)

    def _builder(self) -> Callable[[], _Discovery]:
        """Return what builds this discovery anew: families outlive it, and are not to hold the copy's weights."""
        found = {name: value for name, value in vars(self).items() if name != "skeleton"}

        def build() -> _Discovery:
            again = _Discovery(found["config"])
            again.skeleton.prepare()
            vars(again).update(found)
            return again

        return build

    def family(self) -> EncoderFamily:
        skeleton = self.skeleton
        _refuse_order(skeleton)
        skeleton.prepare()
        own = skeleton.run()
        if self.is_small:
            _refuse_sizes(own.calls)
        self._check_tokens(own)
        self.width = own.calls[0].tokens.shape[-1]
        self.total = own.calls[0].tokens.shape[1]
        self.grid = self._find_grid()
        self.input_norm = self._find_input_norm(own)
        final_norm = self._find_final_norm(own)
        positions, class_token = self._find_positions()
        arguments = self._find_arguments()
        self._check(own, arguments)
        branch = self._find_branch(own, arguments)
        self._check_stored_config()
        prefix = skeleton.prefix
        return EncoderFamily(
            name=f"{self.config.model_type} (by its forward pass)",
            model_types=(self.config.model_type,),
            tower=skeleton.modality,
            layers=_joined(prefix, skeleton.layers_path),
            branch=branch,
            positions=positions,
            kind=self._kind_of(arguments),
            reached="read off its own forward pass",
            final_norm=None if final_norm is None else _joined(prefix, final_norm),
            input_norm=None if self.input_norm is None else _joined(prefix, self.input_norm),
            class_token=class_token,
            layer_inputs=arguments,
            unused=_unused_parts(skeleton.model, prefix),
            config=self.config,
        )

    def _check_stored_config(self) -> None:
        """Refuse a config that describes another model, or none, when it is read from a saved one."""
        stored = self.config.to_dict()
        try:
            again = type(self.config).from_dict(copy.deepcopy(stored))
        except Exception as error:
            cause = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
            raise UnsupportedEncoder(f"its config cannot be read from a saved model: {cause}") from error
        found = again.to_dict()
        changed = [name for name, value in stored.items() if found.get(name) != value]
        if changed and Skeleton(again).shapes() != Skeleton(self.config).shapes():
            names = ", ".join(changed)
            raise UnsupportedEncoder(f"its config has other {names} when it is read from a saved model")

    # Layers and tokens

    def _check_tokens(self, own: OwnPass) -> None:
        """Refuse an encoder that does more than to hand its tokens from layer to layer."""
        layers = list(self.skeleton.layers)
        if len({id(layer) for layer in layers}) < len(layers):
            raise UnsupportedEncoder("its layers share weights, so their passes could not have separate adapters")
        if [id(call.layer) for call in own.calls] != [id(layer) for layer in layers]:
            raise UnsupportedEncoder("its layers are not applied once each in their order: some are shared or skipped")
        first = own.calls[0]
        if not first.main or not first.tokens.is_floating_point():
            raise UnsupportedEncoder("its layers get no tokens as their first argument")
        if first.tokens.ndim != 3 and self.skeleton.modality == "text":
            raise UnsupportedEncoder("its layers get several streams of numbers for each token")
        if first.tokens.ndim != 3:
            raise UnsupportedEncoder("its layers get a grid of pixels, and tokens of a cloud form no grid")
        is_line = self.skeleton.modality == "text"
        rows = first.tokens.shape[0] // BATCH
        if rows > 1 and first.tokens.shape[0] == rows * BATCH and not is_line:
            raise UnsupportedEncoder(f"its layers get {rows} rows of tokens for each input, and a cloud has one")
        if first.tokens.shape[0] != BATCH or (is_line and first.tokens.shape[2] == WORDS):
            raise UnsupportedEncoder("its layers get the tokens on another axis than the second")
        for call in own.calls:
            output = hidden_of(call.output)
            shapes = {call.tokens.shape, output.shape if isinstance(output, torch.Tensor) else None}
            if shapes != {first.tokens.shape}:
                raise UnsupportedEncoder("its stages merge or widen tokens, and tokens of a cloud form no grid")
        for call, following in zip(own.calls, own.calls[1:], strict=False):
            if not torch.equal(hidden_of(call.output), following.tokens):
                raise UnsupportedEncoder("its tokens change between the layers")
        if self.skeleton.modality == "text" and first.tokens.shape[1] != WORDS:
            raise UnsupportedEncoder(f"its layers get {first.tokens.shape[1]} tokens for {WORDS} words")
        width = getattr(self.config, "hidden_size", None)
        if width is None:
            # A config that leaves it to the model which it wraps is told it.
            width = self.config.hidden_size = first.tokens.shape[-1]
        if first.tokens.shape[-1] != width:
            raise UnsupportedEncoder(
                f"its layers have {first.tokens.shape[-1]} channels, its config hidden_size={width}"
            )

    def _find_grid(self) -> tuple[int, ...]:
        """Return the number of places on the encoder's line, or rows and columns of its patches."""
        if self.skeleton.modality != "vision":
            return (self.total,)
        try:
            rows, columns = image_grid(self.skeleton.config)
        except (AttributeError, TypeError):
            rows = columns = math.isqrt(self.total)
        if not 0 <= self.total - rows * columns <= 16:
            raise UnsupportedEncoder(f"the {self.total} tokens of its input form no grid of patches")
        return (rows, columns)

    def _own_grid(self) -> tuple[int, int]:
        """Return the rows and columns of the encoder's own images, which may be larger than those of the trial."""
        return image_grid(self.config) if self.is_small else self.grid

    def _find_input_norm(self, own: OwnPass) -> str | None:
        """Return the path of the norm whose output is the first layer's input."""
        entering = own.calls[0].tokens
        for step in reversed(own.before):
            if self._is_norm_step(step, entering) and torch.equal(step.output.reshape(entering.shape), entering):
                return step.path
        return None

    def _find_final_norm(self, own: OwnPass) -> str | None:
        leaving = hidden_of(own.calls[-1].output)
        for step in own.after:
            if self._is_norm_step(step, leaving) and torch.equal(step.source.reshape(leaving.shape), leaving):
                return step.path
        return None

    def _is_norm_step(self, step: Step, tokens: torch.Tensor) -> bool:
        if not isinstance(step.source, torch.Tensor) or not isinstance(step.output, torch.Tensor):
            return False
        module = self.skeleton.part.get_submodule(step.path)
        sizes = {step.source.numel(), step.output.numel(), tokens.numel()}
        return len(sizes) == 1 and is_norm(module, self.width)

    # Positions that are added to tokens

    def _find_positions(self) -> tuple[Callable[[PreTrainedModel], PositionTable], Any]:
        """Return what reads the positions of an encoder, and its class token's vector."""
        table = self._entering(erased=True)
        places = math.prod(self.grid)
        special = self.total - places
        patches = table[special:]
        is_line = len(self.grid) == 1
        rows, columns = (1, None) if is_line else self._own_grid()
        class_token = None
        if special:
            class_token = self._find_class_token(table, special)
        if (patches - patches[:1]).abs().max() <= _TOLERANCE * patches.abs().max().clamp_min(1):
            # A vector that all tokens have alike is no position.
            kind = "line" if is_line else "plane"
            self.has_table = False
            return (lambda encoder: PositionTable(kind, None, rows, columns)), class_token
        self._check_words()
        source = self._find_rows(patches)
        if source is None and special and self._find_rows(table[:places]) is not None:
            raise UnsupportedEncoder("its class token comes behind its patches, and not before them")
        if source is None:
            return self._computed_positions(patches), class_token
        path, first, shared = source
        prefix = self.skeleton.prefix
        path = _joined(prefix, path)
        shared = [(times, _joined(prefix, other), row) for times, other, row in shared]
        # Some tables hold rows behind those of the longest text.
        count = self._longest() if is_line else rows * columns

        def positions(encoder: PreTrainedModel) -> PositionTable:
            weight = tensor_at(encoder, path)
            weight = weight.reshape(-1, weight.shape[-1])[first:][:count]
            for times, other, row in shared:
                vectors = tensor_at(encoder, other)
                weight = weight + times * vectors.reshape(-1, vectors.shape[-1])[row]
            if is_line:
                return PositionTable("line", weight, 1, len(weight))
            return PositionTable("plane", weight, rows, columns)

        return positions, class_token

    def _entering(self, erased: bool, seed: int | None = None, alike: bool = False) -> torch.Tensor:
        """Return what reaches the norm before the first layer, or that layer, `(tokens, hidden)`."""
        seen = self.skeleton.run(length=self.total, seed=seed, stubbed=True, erase_input=erased, alike=alike)
        if self.input_norm is None:
            return seen.calls[0].tokens[0]
        entering = next(step for step in reversed(seen.before) if step.path == self.input_norm).source
        return entering.reshape(seen.calls[0].tokens.shape)[0]

    def _check_words(self) -> None:
        """Refuse embeddings that norm or project words together with their positions."""
        if self.skeleton.modality != "text":
            return
        # What one word has more than another must be the same at all places.
        entered = self._entering(False, seed=1, alike=True)
        change = entered - self._entering(False, seed=2, alike=True)
        if (change - change[:1]).abs().max() > _TOLERANCE * entered.abs().max().clamp_min(1):
            width = self.skeleton.words.weight.shape[1]
            raise UnsupportedEncoder(
                f"its words have {width} channels and are normed or projected together with their positions to the "
                f"{self.width} of its layers"
            )

    def _tables(self) -> dict[str, torch.Tensor]:
        """Return tensors outside of the layers whose rows have the width of tokens."""
        words = set() if self.skeleton.words is None else {id(self.skeleton.words.weight)}
        part = self.skeleton.part
        found = {}
        inside = f"{self.skeleton.layers_path}."
        for name, tensor in (*part.named_parameters(), *part.named_buffers()):
            is_outside = not name.startswith(inside) and id(tensor) not in words
            if is_outside and not tensor.is_meta and tensor.is_floating_point() and tensor.shape[-1:] == (self.width,):
                found[name] = tensor.reshape(-1, self.width)
        return found

    def _find_rows(self, table: torch.Tensor) -> tuple[str, int, list[tuple[int, str, int]]] | None:
        """Return the tensor whose rows the positions are, the first row, and rows of others added to all of them."""
        count = len(table)
        tables = self._tables()
        limit = _TOLERANCE * float(table.abs().max().clamp_min(1))
        for name, rows in tables.items():
            for first in range(min(len(rows) - count, 64) + 1):
                rest = table - rows[first : first + count]
                if (rest - rest[:1]).abs().max() > limit:
                    continue
                # In images and sound, what all tokens share is a trace of the embedding's bias.
                if rest[0].abs().max() <= limit or self.skeleton.modality != "text":
                    return name, first, []
                shared = self._find_sum(rest[0], tables)
                return None if shared is None else (name, first, shared)
        return None

    def _find_sum(self, vector: torch.Tensor, tables: dict[str, torch.Tensor]) -> list[tuple[int, str, int]] | None:
        """Return rows of tables, and how often each is taken, whose sum is a vector: types of words, empty boxes."""
        rows = [(name, row) for name, values in tables.items() for row in range(min(len(values), 2))]
        vectors = torch.stack([tables[name][row] for name, row in rows]).double()
        times = torch.linalg.lstsq(vectors.T, vector.double().unsqueeze(1), driver="gelsd").solution[:, 0].round()
        if (times @ vectors - vector).abs().max() > 1e-3 * vector.abs().max().clamp_min(1):
            return None
        return [(int(one), *rows[number]) for number, one in enumerate(times.tolist()) if one]

    def _find_class_token(self, table: torch.Tensor, special: int) -> Callable[[PreTrainedModel], torch.Tensor] | None:
        """Return what reads the vector of the class token, without its position."""
        vectors = {name: rows[0] for name, rows in self._tables().items() if len(rows) == 1}
        limit = _TOLERANCE * float(table.abs().max().clamp_min(1))
        shifts = [torch.zeros(self.width)]
        shifts += [rows[0] for rows in self._tables().values() if len(rows) >= len(table) - special]
        for name, vector in vectors.items():
            for shift in shifts:
                if (table[0] - shift - vector).abs().max() <= limit:
                    path = _joined(self.skeleton.prefix, name)
                    return lambda encoder: tensor_at(encoder, path).flatten()
        return None

    def _computed_positions(self, table: torch.Tensor) -> Callable[[PreTrainedModel], PositionTable]:
        """Return positions that a formula gives, whatever the weights are."""
        if self.is_small:
            raise UnsupportedEncoder("its positions are no rows of a table, and depend on the size of its input")
        special = self.total - math.prod(self.grid)
        self.skeleton.randomize(2)
        other = self._entering(erased=True)[special:]
        self.skeleton.randomize(0)
        shift = (table - other)[:1]
        if (table - other - shift).abs().max() > _TOLERANCE * table.abs().max().clamp_min(1):
            return self._positions_by_running()
        rows, columns = (1, len(table)) if len(self.grid) == 1 else self.grid
        if len(self.grid) == 1:
            table = self._longest_line()
            columns = len(table)
        kept: dict[Any, torch.Tensor] = {}

        def positions(encoder: PreTrainedModel) -> PositionTable:
            key = (encoder.device, encoder.dtype)
            if key not in kept:
                kept[key] = table.to(*key)
            return PositionTable("line" if rows == 1 else "plane", kept[key], rows, columns)

        return positions

    def _positions_by_running(self) -> Callable[[PreTrainedModel], PositionTable]:
        """Return positions that the encoder's own embeddings compute from several of its learned tables."""
        if len(self.grid) > 1:
            raise UnsupportedEncoder("its positions are computed from several learned tables")
        build = self._builder()
        width = self.width
        paths = [path for _, _, path in self._learned_outside()]
        kept: dict[Any, PositionTable] = {}

        def positions(encoder: PreTrainedModel) -> PositionTable:
            if torch.compiler.is_compiling() and kept:
                return next(iter(kept.values()))
            weights = [tensor_at(encoder, path) for path in paths]
            if any(weight.is_meta for weight in weights):
                # Offloaded; the family asks again when they are there.
                return PositionTable("line", torch.empty(1, width, device="meta"), 1, 1)
            key = tuple((weight.data_ptr(), weight._version) for weight in weights)
            if key not in kept:
                with _apart_from_training():
                    discovery = build()
                    for (module, name, _), weight in zip(discovery._learned_outside(), weights, strict=True):
                        module._parameters[name] = nn.Parameter(weight.detach().float().cpu(), requires_grad=False)
                    table = discovery._longest_line().to(weights[0])
                kept.clear()
                kept[key] = PositionTable("line", table, 1, len(table))
            return kept[key]

        return positions

    def _learned_outside(self) -> list[tuple[nn.Module, str, str]]:
        """Return the learned tensors outside of the layers but words: module, name in it, and path in the encoder."""
        skeleton = self.skeleton
        return [
            (module, name, _joined(skeleton.prefix, _joined(path, name)))
            for path, module in skeleton.outside.items()
            for name in module._parameters
            if module is not skeleton.words and module._parameters[name] is not None
        ]

    def _longest(self) -> int | None:
        """Return the length of the longest text that the config allows, or None if it sets no limit."""
        config = self.config if self.is_small else self.skeleton.config
        return getattr(config, "max_position_embeddings", None) or getattr(config, "max_source_positions", None)

    def _longest_line(self) -> torch.Tensor:
        total = self.total
        longest = self._longest() or 512
        try:
            # Some tables begin with rows that no text reads.
            for self.total in range(longest, max(longest - 8, WORDS), -1):
                try:
                    return self._entering(erased=True)
                except UnsupportedEncoder:
                    continue
        finally:
            self.total = total
        raise UnsupportedEncoder(f"its own forward pass fails on {longest} words, as many as its config allows")

    # Arguments of the layers

    def _find_arguments(self) -> LayerArguments:
        """Return what makes the layers' arguments; the form of their mask is found by `_check`."""
        skeleton = self.skeleton
        depends_on_length = re.search("dynamic|longrope", str(getattr(skeleton.config, "rope_parameters", "")))
        triangles = find_triangles(skeleton.layers)
        if self.skeleton.modality != "text":
            return LayerArguments(self._plan(self.total), triangles=triangles)
        layers = self._plan(WORDS)
        has_rotation = any(isinstance(value, FittedRotation) for value in _leaves(layers))
        # Frequencies are sharper on a longer line, as far as the encoder reads.
        longest = getattr(skeleton.config, "max_position_embeddings", None) or 128
        if has_rotation and not depends_on_length and longest > WORDS:
            layers = self._plan(min(longest, 128))
        plan = None
        if depends_on_length:
            build = self._builder()

            def plan(length: int) -> list[dict[str, Any]]:
                with _apart_from_training():
                    return build()._plan(length)

        return LayerArguments(layers, triangles=triangles, plan=plan)

    def _plan(self, length: int) -> list[dict[str, Any]]:
        first = self.skeleton.run(length=length, seed=1, stubbed=True)
        self.skeleton.randomize(3)
        other = self.skeleton.run(length=length, seed=2, stubbed=True)
        self.skeleton.randomize(0)
        total = first.calls[0].tokens.shape[1]
        grid = self.grid if self.skeleton.modality == "vision" else (total,)
        return ArgumentReader(grid, total, self._small_weights()).read(first.calls, other.calls)

    def _small_weights(self) -> dict[str, torch.Tensor]:
        """Return weights outside of the layers that may be the angles of a class token, by their names."""
        prefix = self.skeleton.prefix
        inside = f"{self.skeleton.layers_path}."
        weights = self.skeleton.part.named_parameters()
        return {
            _joined(prefix, name): weight.flatten()
            for name, weight in weights
            if not name.startswith(inside) and weight.numel() <= self.width
        }

    # The branch whose output is added last

    def _find_branch(self, own: OwnPass, arguments: LayerArguments) -> str:
        """Return the branch of the layers, found on a few tokens."""
        states = torch.randn(1, WORDS - 2, self.width, generator=torch.Generator().manual_seed(6))
        call = self._call(states, self._some_places(states.shape[1]))
        found = set()
        for number, inputs in enumerate(arguments(call)):
            if number in self.skeleton.kinds:
                layer = self.skeleton.layers[number]
                main = own.calls[number].main
                found.add(find_branch(Call(layer, {main: states, **inputs}, main, None), self.width))
        if None in found:
            raise UnsupportedEncoder("no module's output is the last term that its layers add to the tokens")
        if len(found) > 1:
            names = ", ".join(sorted(str(name) for name in found))
            raise UnsupportedEncoder(f"its layers are of several kinds, which end with {names}")
        return str(found.pop())

    def _some_places(self, count: int) -> TokenPlaces:
        """Return random places of tokens, on the encoder's line or grid."""
        axes = len(self.grid)
        entry = torch.rand(1, 1, count, axes, generator=torch.Generator().manual_seed(4)) * (min(self.grid) - 1)
        rows, columns = (1, count) if axes == 1 else self.grid
        return TokenPlaces(entry, rows, columns)

    # What was found against the encoder's own pass

    def _check(self, own: OwnPass, arguments: LayerArguments) -> None:
        """Find the forms of mask and rotations with which the layers answer as in the encoder's own pass."""
        problems = []
        batch_forms = BATCH_FORMS if _has_flat_rotation(arguments.layers) else BATCH_FORMS[:1]
        for arguments.mask_form, arguments.batch_form in itertools.product(MASK_FORMS, batch_forms):
            try:
                problem = self._compare(own, arguments)
            except UnsupportedEncoder:
                raise
            except Exception as error:  # whatever a layer of an unknown encoder raises
                problems.append(f"its layers fail on point tokens in the trial ({words_of(error)})")
                continue
            if problem is None:
                return
            # An answer tells more than an error.
            problems.insert(0, problem)
        raise UnsupportedEncoder(problems[0])

    def _compare(self, own: OwnPass, arguments: LayerArguments) -> str | None:
        """Return what is wrong with the layers' outputs, or None."""
        for implementation in ("sdpa", "eager"):
            if implementation == "sdpa" and not self.skeleton.part._supports_sdpa:
                continue
            self._set_attention(implementation)
            problem = self._exchange(arguments) or self._own_places(own, arguments)
            if problem is not None:
                return problem
        return None

    def _set_attention(self, implementation: str) -> None:
        for module in self.skeleton.model.modules():
            config = getattr(module, "config", None)
            if isinstance(config, PreTrainedConfig):
                config._attn_implementation = implementation

    def _call(self, tokens: torch.Tensor, places: TokenPlaces) -> LayerPass:
        return LayerPass(self.skeleton.part, self.skeleton.layers, tokens, None, places, "mean_angle")

    def _exchange(self, arguments: LayerArguments) -> str | None:
        """Exchange tokens and places together: outputs must be exchanged, and all feel a change of the last token."""
        generator = torch.Generator().manual_seed(4)
        count = WORDS - 2
        tokens = torch.randn(1, count, self.width, generator=generator)
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(count - 1, generator=generator)])
        changed = tokens.clone()
        changed[:, -1] += torch.randn(self.width, generator=generator)
        states = torch.cat([tokens, tokens[:, order], changed])
        places = self._some_places(count)
        entry = places.entry
        call = self._call(states, replace(places, entry=torch.cat([entry, entry[:, :, order], entry])))
        for number, inputs in enumerate(arguments(call)):
            if number not in self.skeleton.kinds:
                continue
            outputs = hidden_of(self.skeleton.layers[number](states, **inputs))
            size = outputs.abs().max()
            if not outputs.isfinite().all():
                return "its layers give no finite answer for point tokens"
            if (outputs[0, order] - outputs[1]).abs().max() > 1e-3 * size:
                return "its layers depend on the order of the tokens beyond their positions, and a cloud has no order"
            if ((outputs[0] - outputs[2]).abs().amax(dim=-1)[:-1] == 0).sum() > count // 2:
                return "its layers hide tokens from each other along their order, and a cloud has no order"
        return None

    def _own_places(self, own: OwnPass, arguments: LayerArguments) -> str | None:
        """Compare layers at the encoder's own places with what its own arguments give, both without a mask."""
        special = self.total - math.prod(self.grid)
        # Special tokens behind the first come last, as tokens without a place.
        order = [*range(min(special, 1)), *range(special, self.total), *range(1, special)]
        rows, columns = (1, self.total) if len(self.grid) == 1 else self.grid
        entry = self._own_entries(rows, columns)
        places = TokenPlaces(entry, rows, columns, class_tokens=0)
        if special:
            places = TokenPlaces.with_class_token(entry, rows, columns).followed_by(special - 1)
        for number in self.skeleton.kinds:
            theirs = own.calls[number]
            states = theirs.tokens[:, order]
            call = self._call(states, places)
            inputs = list(arguments(call))[number]
            expected = self._with_own_arguments(theirs, inputs)
            found = hidden_of(theirs.layer(states, **inputs))
            if (found - expected[:, order]).abs().max() > _TOLERANCE * expected.abs().max().clamp_min(1):
                return "its layers answer otherwise at its own places, so their arguments are not understood"
        return None

    def _own_entries(self, rows: int, columns: int) -> torch.Tensor:
        if len(self.grid) == 1:
            return torch.arange(columns).float().view(1, 1, -1, 1)
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return torch.stack([column, row], dim=-1).reshape(1, 1, -1, 2).float()

    def _with_own_arguments(self, theirs: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Run a layer with the encoder's own arguments, but for masks, caches and flags."""
        values = {}
        for name, value in theirs.arguments.items():
            low = name.lower()
            is_ours = any(word in low for word in ("cache", "past_key", "is_causal", "output_"))
            if is_ours and name in inputs:
                value = inputs[name]
            elif "mask" in low:
                # Whatever the form that is given to point tokens, the encoder's own one hides nothing here.
                value = _hiding_nothing(value)
            values[name] = value
        tokens = values.pop(theirs.main)
        return hidden_of(theirs.layer(tokens, **values))

    def _kind_of(self, arguments: LayerArguments) -> str:
        shape = "line" if len(self.grid) == 1 else "grid"
        kinds = []
        if self.has_table:
            kinds.append("table")
        if any(isinstance(value, FittedRotation) for value in _leaves(arguments.layers)):
            kinds.append("rotary")
        return f"{' and '.join(kinds) or 'none'}, on a {shape}"


def _hiding_nothing(mask: Any) -> Any:
    if isinstance(mask, dict):
        return {kind: _hiding_nothing(one) for kind, one in mask.items()}
    if not isinstance(mask, torch.Tensor):
        return mask
    return torch.zeros_like(mask) if mask.is_floating_point() else torch.ones_like(mask)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in _leaves(one)]
    return [value]


def _refuse_sizes(calls: list[Call]) -> None:
    """Refuse what may depend on the size of the input among the arguments of layers: rotations and numbers."""
    for call in calls:
        others = {name: v for name, v in call.arguments.items() if name != call.main and "mask" not in name.lower()}
        for value in _leaves(others):
            if isinstance(value, (int, float, tuple, torch.Tensor)) and not isinstance(value, bool):
                raise UnsupportedEncoder("what its layers get depends on the size of its input")


def _has_flat_rotation(layers: list[dict[str, Any]]) -> bool:
    return any(isinstance(value, FittedRotation) and value.ndim == 2 for value in _leaves(layers))


def _joined(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path


def _unused_parts(model: nn.Module, prefix: str) -> tuple[str, ...]:
    """Return the paths of whole models beside the encoder, such as a decoder."""
    unused = []
    path = ""
    for name in prefix.split(".") if prefix else ():
        for child, module in model.get_submodule(path).named_children():
            if child != name and isinstance(module, PreTrainedModel):
                unused.append(_joined(path, child))
        path = _joined(path, name)
    return tuple(unused)


def _refuse_order(skeleton: Skeleton) -> None:
    """Refuse layers with modules whose result depends on the order of the tokens."""
    for layer in skeleton.layers:
        for module in layer.modules():
            kind = type(module).__name__
            if isinstance(module, CONVOLUTIONS) and max(module.kernel_size) > 1:
                raise UnsupportedEncoder("its layers convolve neighboring tokens, and tokens of a cloud have none")
            # "GatedDeltaNet" is Gated, Delta, Net; "LSTM" is one word.
            words = [word.capitalize() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", kind)]
            if _SEQUENTIAL.intersection(words) or _SEQUENTIAL_PAIRS.intersection(zip(words, words[1:], strict=False)):
                raise UnsupportedEncoder(f"its layers process tokens in sequence ({kind}), and a cloud has no order")


@dataclass
class _Ran:
    output: torch.Tensor
    has_weights: bool


def find_branch(call: Call, width: int) -> str | None:
    """Return the path in a layer of the module whose output is added last, None if there is none.

    A change of its output changes the layer's sum by the same amount, or by one factor for each channel. The sum is
    the layer's output, or the input of a norm at its end.
    """
    layer = call.layer
    names = {id(module): name for name, module in layer.named_modules() if name}
    ran: dict[str, _Ran] = {}
    order: list[str] = []

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        output = hidden_of(output)
        if isinstance(output, torch.Tensor):
            # A copy, as some layers add in place.
            name = names[id(module)]
            ran[name] = _Ran(output.clone(), any(True for _ in module.parameters()))
            order.append(name)

    hooks = [layer.get_submodule(name).register_forward_hook(note) for name in names.values()]
    output = _run_layer(call)
    for hook in hooks:
        hook.remove()
    shape = output.shape
    last_norm = None
    for name in reversed(order):
        module = layer.get_submodule(name)
        if ran[name].output.shape == shape and torch.equal(ran[name].output, output) and is_norm(module, width):
            last_norm = name
            break
    base = _sum_of(call, last_norm)
    best = None
    for name in dict.fromkeys(reversed(order)):
        made = ran[name].output
        # Some layers run their feed-forward part on a list of all tokens.
        if made.numel() != output.numel() or made.shape[-1] != width or not ran[name].has_weights or name == last_norm:
            continue
        if torch.equal(made.view(shape), output) or torch.equal(
            made.view(shape), base
        ):  # a container with the sum inside
            continue
        if best is not None and not best.startswith(f"{name}."):
            if name.startswith(f"{best}."):
                continue
            break
        if _is_added_last(call, last_norm, name, base):
            best = name
        elif best is not None:
            break
    return best


def _run_layer(call: Call) -> torch.Tensor:
    arguments = {name: value for name, value in call.arguments.items() if name != call.main}
    return hidden_of(call.layer(call.tokens.clone(), **arguments))


def _sum_of(call: Any, last_norm: str | None, changed: str | None = None, change: torch.Tensor | None = None) -> Any:
    """Return the last sum of a layer, with a change added to the output of one of its modules."""
    sums = []
    hooks = []
    if last_norm is not None:
        norm = call.layer.get_submodule(last_norm)
        hooks.append(norm.register_forward_pre_hook(lambda module, args: sums.append(args[0].clone())))
    if changed is not None:

        def alter(module: nn.Module, args: tuple, output: Any) -> Any:
            if isinstance(output, (tuple, list)):
                return type(output)([output[0] + change.view(output[0].shape), *output[1:]])
            return output + change.view(output.shape)

        hooks.append(call.layer.get_submodule(changed).register_forward_hook(alter))
    try:
        output = _run_layer(call)
    finally:
        for hook in hooks:
            hook.remove()
    return sums[-1] if sums else output


def _is_added_last(call: Call, last_norm: str | None, name: str, base: torch.Tensor) -> bool:
    size = base.abs().max().clamp_min(1)
    change = size * torch.randn(base.shape, generator=torch.Generator().manual_seed(5))
    try:
        effect = _sum_of(call, last_norm, name, change) - base
    except (RuntimeError, TypeError, ValueError):  # not a tensor of tokens, though it has its shape
        return False
    factor = (effect * change).sum(dim=(0, 1)) / (change * change).sum(dim=(0, 1))
    rest = (effect - factor * change).abs().max()
    return bool(rest <= 1e-3 * size and factor.abs().min() > 1e-6)
