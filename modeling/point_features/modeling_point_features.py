"""Features of point clouds that need no training, and a linear head on them.

points (B, N, channels)
    │  copies, slightly turned, scaled and jittered; the first is the cloud itself
    ▼
copies (B, copies, N, channels) ─────┬─► descriptors of the whole shape
                                     ├─► turned to its up axis ─► frozen point encoder, trained wrap: pooled
                                     └─► depth views of the first copy ─► frozen vision model, mean
    │  concatenated ─► mean over the copies ─► standardized (─► the encoder's in a stored metric)
    ▼
features (B, width) ─────┬─► linear head ─► class scores
                         └─► distance to the nearest training cloud ─► unknown score

Shapes: B clouds, N points of each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from hf_any3d.modeling.config_checks import check_fields
from hf_any3d.modeling.encoders import (
    build_adapter,
    has_adapter,
    open_pretrained_part,
    refuse_adapter,
    restore_part,
    settle_adapter,
)
from hf_any3d.modeling.encoders.loading import FrozenModulesMixin, freeze
from hf_any3d.modeling.layers.constants import constant
from hf_any3d.modeling.layers.forward_contract import PointFeaturesOutput, PointTokensMixin, strict_forward
from hf_any3d.modeling.layers.heads import ClassificationHead, in_precision_of
from hf_any3d.modeling.layers.losses import classification_loss
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.layers.unknown_score import PointCloudClassifierOutput, UnknownScore, UnknownScoreMixin
from hf_any3d.modeling.point_encoders.packaged_encoder import packaged_weights
from hf_any3d.modeling.point_encoders.packaged_metric import in_metric
from hf_any3d.modeling.point_features.configuration_point_features import PART_OF, PointFeaturesConfig
from hf_any3d.modeling.point_features.depth_views import depth_views
from hf_any3d.modeling.point_features.descriptors import describe
from hf_any3d.modeling.point_ops import in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart, absolute_name, check_revisions
from hf_any3d.modeling.pretrained_parts.tensors import own_state

_Model = TypeVar("_Model", bound="PointFeaturesPreTrainedModel")
# Steps of the sequences that copies take their numbers from: fractions of square roots of primes, of this whole.
_WHOLE = 2**31
_STEPS = tuple(round(math.sqrt(prime) % 1 * _WHOLE) for prime in (2, 3, 5, 7, 11, 13, 17))
# Clouds, or depth views, that a frozen model reads at a time: all copies of a large batch would need gigabytes.
_AT_ONCE, _VIEWS_AT_ONCE = 64, 24
# What a model of points says of a cloud besides its features.
_OTHERS = ("last_hidden_state", "centers", "hidden_states", "attentions")


def _open_part(
    name: str, source: str | os.PathLike | PreTrainedModel, revision: str | None
) -> tuple[PreTrainedModel, PretrainedPart | None]:
    """Return the model of a part without its head, and the record of its weights unless the model was given.

    Only the wrap may have an adapter.
    """
    may_adapt = name == "wrap"
    if not isinstance(source, PreTrainedModel):
        return open_pretrained_part(PretrainedPart(absolute_name(source), revision), with_adapter=may_adapt)
    # Heads of a given model are left out: features are what is below them.
    model = source.base_model
    if may_adapt and has_adapter(source):
        # transformers notes an adapter at the model with the head, which is left behind.
        model.peft_config = source.peft_config
    else:
        refuse_adapter(source, name)
    return model, None


def _defaults_around(opened: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """Return the default settings of a model around opened parts, which are used unless others are given."""
    more = [name for name, part in PART_OF.items() if part in opened and name != "encoder"]
    read = [getattr(opened[name].config, "in_channels", 3) for name in ("encoder", "wrap") if name in opened]
    defaults: dict[str, Any] = {
        "features": ("descriptors", "encoder", *more),
        # The model that reads most channels decides; others take the first ones.
        "in_channels": max(read, default=3),
    }
    # Otherwise the encoder is the one that comes with the package.
    if "encoder" in opened:
        defaults["encoder_weights"] = "pretrained"
    return defaults


class PointFeaturesPreTrainedModel(FrozenModulesMixin, LibraryModelMixin, PointTokensMixin, PreTrainedModel):
    """Base class of models of features without training."""

    config_class = PointFeaturesConfig
    config: PointFeaturesConfig
    base_model_prefix = "point_features"
    supports_gradient_checkpointing = False  # nothing before the head is trained
    _no_split_modules = ["PointFeaturesModel"]  # accelerate would find no device for the numbers beside its parts
    _part_paths = {part: part for part in PART_OF.values()}
    # Rounded to half precision, they would move features of little spread by tenths of it.
    _keep_in_fp32_modules_strict = [r"(?:^|point_features\.)(?:mean|scale|metric)$"]

    @classmethod
    def from_parts_pretrained(
        cls: type[_Model],
        *,
        encoder: str | os.PathLike | PreTrainedModel | None = None,
        wrap: str | os.PathLike | PreTrainedModel | None = None,
        vision: str | os.PathLike | PreTrainedModel | None = None,
        revisions: Mapping[str, str] | None = None,
        **config_kwargs: Any,
    ) -> _Model:
        """Build a model around pretrained models, which stay frozen; its head is not fitted.

        A part of the hub is recorded with its commit and checksum, and fetched again when the model is opened; one
        from a directory or from memory is stored with the model.

        Args:
            encoder: Point encoder: a name on the hub, that of a published checkpoint, a directory, or a model. None
                for the one that comes with the package, where `features` has "encoder".
            wrap: Model of this package around an encoder of another modality, or a directory of it. Its adapter is
                stored with it; in a model that was given, it is a part of this model from then on. With `wrap_labels`,
                a model with a head of so many labels.
            vision: Vision model of transformers for depth views; of a checkpoint with several towers, that tower.
            revisions: Branch, tag or commit of parts from the hub, by the names of the arguments.
            **config_kwargs: Fields of `PointFeaturesConfig`. By default `features` are "descriptors", "encoder" and
                those of the given parts, and clouds are not turned for a part that is given.

        Raises:
            ValueError: `wrap_labels` of a wrap that is no classifier of so many labels.
            OSError: There is no such directory or repository, or the hub cannot be reached.
        """
        check_fields(cls.config_class, config_kwargs, f"{cls.__name__}.from_parts_pretrained")
        sources = {"encoder": encoder, "wrap": wrap, "vision": vision}
        sources = {name: part for name, part in sources.items() if part is not None}
        check_revisions(revisions, [name for name, part in sources.items() if not isinstance(part, PreTrainedModel)])
        head = None
        # Before the wrap is opened, which leaves its head behind.
        if config_kwargs.get("wrap_labels") is not None:
            # The head of a classifier, as its adapter has trained it
            labels = config_kwargs["wrap_labels"]
            head = getattr(wrap, "classifier", None)
            if has_adapter(wrap):
                from peft.utils import ModulesToSaveWrapper  # takes a second

                # PEFT keeps the head that it was given beside the trained copy.
                if isinstance(head, ModulesToSaveWrapper):
                    head = head.modules_to_save[head.active_adapters[0]]
            if not isinstance(head, ClassificationHead) or head.out.out_features != labels:
                raise ValueError(f"wrap_labels={labels}: the wrap is no classifier with so many labels")
        opened = {}
        records = {}
        for name, source in sources.items():
            revision = (revisions or {}).get(name)
            opened[name], recorded = _open_part(name, source, revision)
            if name == "wrap" and has_adapter(opened[name]):
                # Stored with the model, so there is no repository of these weights to record.
                origin = "wrap" if isinstance(source, PreTrainedModel) else os.fspath(source)
                config_kwargs["wrap_adapter"] = settle_adapter(opened[name], origin)
            elif recorded is not None and not os.path.isdir(source):
                records[name] = recorded.to_dict()
            config_kwargs[f"{name}_config"] = opened[name].config
        model = cls(cls.config_class(**_defaults_around(opened) | config_kwargs, parts=records or None), opened)
        if head is not None:
            model.base_model.wrap_head.load_state_dict(head.state_dict())
        return model.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights; a model of descriptors alone has none."""
        weights = (weight.dtype for weight in self.parameters() if weight.is_floating_point())
        return next(weights, self.base_model.mean.dtype)

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.base_model.mean.device

    def reopened_state(self, name: str) -> dict[str, Tensor]:
        """Load the recorded weights of a part again; see `LibraryModelMixin`."""
        return own_state(open_pretrained_part(self.config.part(name), getattr(self.config, f"{name}_config"))[0])

    def _frozen_models(self) -> Iterator[tuple[str, PreTrainedModel]]:
        """Yield the frozen models of the base model, by the names of their parts."""
        for part in PART_OF.values():
            model = getattr(self.base_model, part, None)
            if model is not None:
                yield part, model

    def freeze_untrained(self) -> None:
        """Freeze the models whose features are computed; what is after them is trained."""
        for _, model in self._frozen_models():
            freeze(model)
        if self.base_model.wrap_head is not None:
            freeze(self.base_model.wrap_head)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        for name, model in self._frozen_models():
            restore_part(model, self.config.part(name))
        # Loading replaces parameters with new ones, which would be trained.
        self.freeze_untrained()
        super()._initialize_missing_keys(is_quantized)


class PointFeaturesModel(PointFeaturesPreTrainedModel):
    """Standardized features of point clouds, averaged over slightly changed copies of each.

    Args:
        config: The configuration.
        parts: Loaded models by the names of the config's parts. Those that are not given are built from the config;
            the packaged encoder has its weights.
    """

    mean: Tensor
    scale: Tensor
    metric: Tensor | None

    def __init__(self, config: PointFeaturesConfig, parts: Mapping[str, PreTrainedModel] | None = None):
        super().__init__(config)
        # All points pass this module; `get_input_embeddings` returns it.
        self.input_tokens = nn.Identity()
        given = dict(parts or {})
        self.wrap_head: ClassificationHead | None = None
        for name, part in PART_OF.items():
            if name not in config.features:
                self.add_module(part, None)
                continue
            model = given.get(part)
            if model is None:
                model = AutoModel.from_config(getattr(self.config, f"{part}_config"))
                if part == "wrap" and self.config.wrap_adapter is not None:
                    build_adapter(model, self.config.wrap_adapter)
            if model.config._attn_implementation is None:
                # Nesting a config in another one resets the attention implementation that its model was built with.
                model.config._attn_implementation = config._attn_implementation
            setattr(config, f"{part}_config", model.config)
            self.add_module(part, model)
            # No config says how many features a model gives, so one is asked.
            if getattr(config, f"{part}_width") is None:
                setattr(config, f"{part}_width", self._find_width(name))
        if config.wrap_labels is not None:
            wrap = config.wrap_config
            self.wrap_head = ClassificationHead(
                config.wrap_width,
                config.wrap_labels,
                wrap.head_widths,
                bias=wrap.head_bias,
                dropout=wrap.head_dropout,
                activation=getattr(wrap, "head_activation", "relu"),
            )
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("scale", torch.ones(config.hidden_size))
        # Without a metric, features are compared as they are.
        width = config.encoder_width
        self.register_buffer("metric", torch.eye(width) if config.metric and width is not None else None)
        self.post_init()
        self.expect_parts_elsewhere()
        if "encoder" not in given:
            # On the meta device there is no memory to load them into.
            is_empty = self.mean.device.type == "meta"
            if self.encoder is not None and self.config.encoder_weights == "packaged" and not is_empty:
                self.encoder.load_state_dict(packaged_weights())
        self.freeze_untrained()

    @torch.no_grad()
    def _find_width(self, name: str) -> int:
        """Count the features that a frozen model gives for a cloud."""
        model = getattr(self, PART_OF[name])
        # Any cloud will do; the generator leaves the caller's random numbers as they are.
        count = 2 * self.config.min_points
        points = torch.rand(2, count, self.config.in_channels, generator=torch.Generator().manual_seed(0))
        with evaluation_mode(model):
            features = self._frozen_features(name, points.to(model.device, torch.float32), {})[0]
        return features.shape[-1]

    @strict_forward
    def forward(
        self, points: Tensor, output_hidden_states: bool | None = None, output_attentions: bool | None = None
    ) -> PointFeaturesOutput:
        """Compute features of point clouds.

        `pooler_output (batch, width)` are the standardized features. The other outputs are those of the point encoder,
        else of the wrap, for the clouds themselves.
        """
        config = self.config
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_attentions = config.output_attentions if output_attentions is None else output_attentions
        # States and attention weights are of one model alone.
        main = next((name for name in ("encoder", "wrap") if name in config.features), None)
        if with_attentions and main is None:
            raise ValueError(f"output_attentions=True: {list(config.features)} have no attention over points")
        check_channels(points, config.in_channels, config.min_points)
        points = self.input_tokens(in_full_precision(points, self.dtype))
        # Copies of one cloud follow each other, the cloud itself first.
        copies = make_copies(points, config).flatten(0, 1)  # (B * copies, N, channels)
        sets = []
        encoded = {}
        for name in config.features:
            if name == "descriptors":
                features = describe(copies, config.up_axis, config.normals)
            elif name == "views":
                # Views show the cloud itself; repeated for each copy, they are their own mean over the copies.
                features = self._frozen_features(name, points, {})[0].repeat_interleave(config.copies, dim=0)
            elif name == main:
                asked = {"output_hidden_states": with_states, "output_attentions": with_attentions}
                features, encoded = self._frozen_features(name, copies, asked)
            else:
                features, _ = self._frozen_features(name, copies, {})
            sets.append(features.float())
        features = torch.cat(sets, dim=-1).unflatten(0, (-1, config.copies)).mean(dim=1)  # (B, width)
        features = (features - self.mean.float()) / self.scale.float()
        if self.metric is not None:
            # The encoder's features come first, see `set_metric`.
            width = len(self.metric)
            compared = in_metric(features[:, :width], self.metric.float())
            features = torch.cat([compared, features[:, width:]], dim=1)
        hidden_states = encoded.get("hidden_states")
        # Descriptors have no layers: their only state is the input.
        if with_states and main is None:
            hidden_states = (points.to(self.dtype),)
        return PointFeaturesOutput(
            last_hidden_state=encoded.get("last_hidden_state"),
            pooler_output=features.to(self.dtype),
            centers=encoded.get("centers"),
            hidden_states=hidden_states,
            attentions=encoded.get("attentions"),
        )

    def _frozen_features(self, name: str, points: Tensor, asked: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Run a frozen model on clouds `(rows, points, channels)`.

        Returns its features `(rows, width)`, and what else it says of every `config.copies`-th row, the clouds
        themselves.
        """
        config = self.config
        part = PART_OF[name]
        model = getattr(self, part)
        # Depth views are drawn with the axis of the cloud itself.
        axis = getattr(config, f"{part}_up_axis", None)
        # Encoders were trained with one axis up, and clouds come with another.
        if axis is not None:
            points = turned_up(points, config.up_axis, axis, config.normals)
        pieces = self._pieces(name, points)
        if name == "views":
            edge = self.config.image_size or getattr(self.config.vision_config, "image_size", None) or 224
            # Models of images that are no squares state both edges.
            edge = edge if isinstance(edge, int) else max(edge)
            seen = [self._see(depth_views(piece, edge, config.views, config.up_axis)) for piece in pieces]
            return torch.cat(seen), {}
        pooled = []
        others = []
        for piece in pieces:
            output = model(piece[..., : model.config.in_channels], **asked, return_dict=True)
            features = output.pooler_output
            if name == "wrap" and self.wrap_head is not None:
                # Log-probabilities, as probabilities of other labels would all be near 0.
                features = self.wrap_head(features).log_softmax(dim=-1)
            pooled.append(features)
            # Only of the clouds themselves: states of all copies would be many times as large.
            others.append({key: _every(output.get(key), config.copies) for key in _OTHERS})
        return torch.cat(pooled), {key: _joined([other[key] for other in others]) for key in _OTHERS}

    def _pieces(self, name: str, points: Tensor) -> Sequence[Tensor]:
        """Split clouds `(rows, points, channels)` into pieces that a frozen model gets at once."""
        # In one piece where gradients are wanted, or code is compiled for all sizes.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return [points]
        if name == "views":
            return points.split(max(1, _VIEWS_AT_ONCE // self.config.views))
        # A multiple of the copies, so that each piece begins with a cloud itself, see `_every`.
        return points.split(max(1, _AT_ONCE // self.config.copies) * self.config.copies)

    def _see(self, images: Tensor) -> Tensor:
        """Return the mean output of the vision model for views `(rows, views, size, size)`: `(rows, width)`."""
        rows = len(images)
        config = self.config
        mean, std = (constant(values, images).view(3, 1, 1) for values in (config.image_mean, config.image_std))
        # A depth map is gray; broadcasting repeats it for the three channels.
        pixels = (images.flatten(0, 1).unsqueeze(1) - mean) / std  # (rows * views, 3, size, size)
        output = self.vision(pixel_values=pixels.to(self.vision.dtype), return_dict=True).last_hidden_state
        # (…, tokens, width) of transformers, (…, width, height, width of the map) of convolutions
        pooled = output.mean(dim=1) if output.ndim == 3 else output.flatten(2).mean(dim=2)
        return pooled.float().unflatten(0, (rows, -1)).mean(dim=1)


class PointFeaturesForPointCloudClassification(UnknownScoreMixin, PointFeaturesPreTrainedModel):
    """`PointFeaturesModel` with a linear head, and an unknown score if the config has one.

    Example:
        ```python
        import torch
        from hf_any3d import PointFeaturesConfig, PointFeaturesForPointCloudClassification

        model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(num_labels=3))
        points = torch.rand(2, 256, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def __init__(self, config: PointFeaturesConfig, parts: Mapping[str, PreTrainedModel] | None = None):
        super().__init__(config)
        self.point_features = PointFeaturesModel(config, parts)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.unknown_score = UnknownScore.of_config(config, config.hidden_size)
        self.side_head = nn.Linear(config.hidden_size, 1) if config.one_sided else None
        self.post_init()
        self.expect_parts_elsewhere()

    @strict_forward
    def forward(self, points: Tensor, labels: Tensor | None = None, **kwargs: Any) -> PointCloudClassifierOutput:
        """Return `logits (batch, labels)`; by the config also `unknown (batch,)` and `one_sided (batch,)`."""
        output = self.point_features(points, **kwargs, return_dict=True)
        features = in_precision_of(self.classifier, output.pooler_output)
        logits = self.classifier(features) / self.config.temperature  # (B, labels)
        one_sided = None
        # With adapters, one may tell what the others do not.
        if self.side_head is not None and self.config.one_sided:
            one_sided = self.side_head(features)[:, 0].sigmoid()
        return PointCloudClassifierOutput(
            loss=classification_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            unknown=self.score_unknown(features, logits),
            one_sided=one_sided,
        )

    @torch.no_grad()
    def set_side_head(self, weight: Tensor, bias: float) -> None:
        """Set the head that recognizes clouds that were seen from one side.

        `weight` `(width,)` is for standardized features; where their weighted sum plus `bias` is above 0, a cloud
        looks one-sided.
        """
        width = self.config.hidden_size
        if weight.shape != (width,) or not weight.isfinite().all() or not math.isfinite(bias):
            raise ValueError(f"weight has shape {tuple(weight.shape)}; expected ({width},), and finite numbers")
        self.config.one_sided = True
        if self.side_head is None:
            self.side_head = nn.Linear(width, 1).to(self.classifier.weight)
        self.side_head.weight.copy_(weight[None])
        self.side_head.bias.fill_(bias)

    @torch.no_grad()
    def set_metric(self, matrix: Tensor | None) -> None:
        """Set the metric `(width, width)` in which the encoder's features are compared, or None for none.

        Head, mean and scale have to be set anew, as they are for features in that metric.
        """
        core = self.point_features
        config = self.config
        if matrix is not None and (config.features[0] != "encoder" or matrix.shape != 2 * (config.encoder_width,)):
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)} with features={list(config.features)}; expected "
                f"{2 * (config.encoder_width,)}, and 'encoder' as the first of the features"
            )
        config.metric = matrix is not None
        core.metric = None if matrix is None else matrix.to(core.mean)

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> None:
        """Set the head, and the mean and the scale `(width,)` by which features are standardized.

        `weight (labels, width)` and `bias (labels,)` are for standardized features.

        Raises:
            ValueError: A tensor has another shape, or NaN or infinite numbers; names it.
        """
        # Everything is checked before anything is changed.
        core = self.point_features
        head = self.classifier
        places = {"weight": head.weight, "bias": head.bias, "mean": core.mean, "scale": core.scale}
        values = {"weight": weight, "bias": bias, "mean": mean, "scale": scale}
        for name, value in values.items():
            if value.shape != places[name].shape or not value.isfinite().all():
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; expected {tuple(places[name].shape)}, and finite numbers"
                )
        for name, value in values.items():
            places[name].copy_(value)


def _every(values: Any, step: int) -> Any:
    """Return every so-manieth row of a tensor, or of each tensor of a tuple."""
    if isinstance(values, tuple):
        return tuple(each[::step] for each in values)
    return None if values is None else values[::step]


def _joined(values: list[Any]) -> Any:
    """Join the rows of tensors, or of tuples of them."""
    if isinstance(values[0], tuple):
        return tuple(torch.cat(each) for each in zip(*values, strict=True))
    return None if values[0] is None else torch.cat(values)


def turned_up(points: Tensor, up_axis: str, new_up_axis: str, normals: bool = False) -> Tensor:
    """Rotate clouds `(…, channels)` by a quarter turn so that what points up along one axis does so along another.

    The third axis stays. With `normals`, channels 3 to 5 are turned, too.
    """
    if up_axis == new_up_axis:
        return points
    channels = list(points.unbind(-1))
    for start in (0, 3) if normals else (0,):
        old = start + "xyz".index(up_axis)
        new = start + "xyz".index(new_up_axis)
        # The sign makes it a rotation: exchanging two axes alone would mirror the cloud.
        channels[new], channels[old] = channels[old], -channels[new]
    return torch.stack(channels, dim=-1)


def make_copies(points: Tensor, config: PointFeaturesConfig) -> Tensor:
    """Turn, scale and jitter clouds slightly, by the same amounts for each cloud and every call.

    Points `(batch, points, channels)`, in full precision, become `(batch, copies, points, channels)`, of which the
    first is the cloud itself; with `config.normals` these are turned too.
    """
    if config.copies == 1:
        return points.unsqueeze(1)
    device = points.device
    kind = points.dtype
    # From 1 on: the multiple of 0 would be another copy without a turn.
    number = torch.arange(config.copies - 1, device=device) + 1
    turn = math.radians(config.copy_turn) * (2 * _spread(number, 0) - 1)  # (copies - 1,)
    low, high = config.copy_scale
    factors = torch.stack([low + (high - low) * _spread(number, 1 + axis) for axis in range(3)], dim=-1)
    up = "xyz".index(config.up_axis)
    first = (up + 1) % 3
    second = (up + 2) % 3
    cosine = turn.cos().to(kind)[:, None]
    sine = turn.sin().to(kind)[:, None]

    def turned(vectors: Tensor) -> Tensor:
        # (B, N, 3) to (B, copies - 1, N, 3)
        x = vectors[:, None, :, first]
        y = vectors[:, None, :, second]
        axes: list[Tensor] = [vectors] * 3
        axes[first], axes[second] = cosine * x - sine * y, sine * x + cosine * y
        axes[up] = vectors[:, None, :, up].expand_as(axes[first])
        return torch.stack(axes, dim=-1)

    xyz = points[..., :3]
    changed = turned(xyz) * factors.to(kind)[:, None, :]
    if config.copy_jitter:
        place = torch.arange(xyz.shape[1], device=device) + 1
        noise = [_spread(place, 4 + axis, number[:, None]) for axis in range(3)]  # (copies - 1, N) each
        # In radii, as files have any unit.
        radius = (xyz - xyz.mean(dim=1, keepdim=True)).square().sum(-1).amax(dim=1).sqrt()  # (B,)
        moved = (2 * torch.stack(noise, dim=-1) - 1).to(kind) * config.copy_jitter
        changed = changed + moved * radius[:, None, None, None]
    # Further channels, such as colors, do not change with the pose.
    others = points[:, None, :, 3:].expand(-1, config.copies - 1, -1, -1)
    if config.normals:
        others = torch.cat([turned(points[..., 3:6]), others[..., 3:]], dim=-1)
    copies = torch.cat([changed, others], dim=-1)
    return torch.cat([points.unsqueeze(1), copies], dim=1)


def _spread(number: Tensor, sequence: int, shift: Tensor | int = 0) -> Tensor:
    """Return numbers from 0 to 1 that are spread evenly: fractions of the multiples of an irrational number.

    A generator would give other numbers on other devices, and none in an exported program.
    """
    # Whole numbers: fractions of large multiples would lose their digits in float32.
    value = number * _STEPS[sequence] + shift * _STEPS[(sequence + 1) % len(_STEPS)]
    return (value % _WHOLE).float() / _WHOLE
