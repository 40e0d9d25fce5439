"""ACT's first training stage: a discrete autoencoder of point clouds with a frozen transformer of any modality.

patches (B, G, M, 3) ─► patch encoder ─► graph convolutions ─► scores of codes (B, G, codes)
    │  Gumbel softmax while training, the likeliest code otherwise
    ▼
codes (B, G, width) ─► frozen transformer with learned prompts ─► features: the targets of the student
    │
    ▼
graph convolutions ─► folding decoder ─► coarse and fine patches ─► Chamfer distance (+ KL term of the codes)

Shapes: B clouds, G tokens, M points of a patch, H width of a token.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import ModelOutput

from hf_any3d.modeling.act.codebook import Codebook, gumbel_noise, uniform_code_loss
from hf_any3d.modeling.act.configuration_act import NUM_GROUPS, POINTS_PER_COARSE_POINT, ActAutoencoderConfig
from hf_any3d.modeling.encoders import (
    EncoderFamily,
    FrozenEncoderMixin,
    LayerPass,
    TokenPlaces,
    compute_prefix,
    hidden_of,
    prefix_attention,
    run_with_prefix,
)
from hf_any3d.modeling.kernels.dispatch import recomputed
from hf_any3d.modeling.layers.adapted_layers import may_run_again
from hf_any3d.modeling.layers.constants import constant
from hf_any3d.modeling.layers.direct_weights import is_unmodified
from hf_any3d.modeling.layers.forward_contract import PointTokensMixin, requested_outputs, strict_forward
from hf_any3d.modeling.point_encoders.patches import PatchEncoder, Patches, cut_patches
from hf_any3d.modeling.point_ops import chamfer_distance, group, knn

# Corners of the grid around every coarse point, in the units of the input.
_CORNERS = ((-0.05, -0.05), (0.05, -0.05), (-0.05, 0.05), (0.05, 0.05))
_POSITION_WIDTH = 128
# Of the leaky ReLU after group norms.
_SLOPE = 0.2


class GraphConvolution(nn.Module):
    """Edge convolutions on one graph of nearest centers, and a layer on their concatenated outputs.

    Source: DGCNN (arXiv 1801.07829) as Point-BERT (arXiv 2111.14819) uses it, with a fixed graph.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_width: int = 128,
        widths: Sequence[int] = (256, 512, 512, 1024),
    ):
        super().__init__()
        self.input = nn.Linear(in_channels, input_width)
        all_widths = [input_width, *widths]
        self.layers = nn.ModuleList(EdgeLayer(a, b) for a, b in zip(all_widths, widths, strict=False))
        self.output = nn.Linear(sum(widths), out_channels, bias=False)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_channels)

    def forward(self, tokens: torch.Tensor, neighbors: torch.Tensor) -> torch.Tensor:
        """Map tokens to `(batch, tokens, out_channels)`."""
        # Each layer reads the one before, on the same graph; the last reads all of them side by side.
        tokens = self.input(tokens)
        outputs = []
        for layer in self.layers:
            tokens = layer(tokens, neighbors)
            outputs.append(tokens)
        return _normed(self.output(torch.cat(outputs, dim=-1)), self.norm)


class EdgeLayer(nn.Module):
    """Edge convolution: the maximum of `leaky_relu(norm(W [f_j - f_i; f_i]))` over the neighbors j of token i."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.linear = nn.Linear(2 * in_channels, out_channels, bias=False)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_channels)

    def forward(
        self, tokens: torch.Tensor, neighbors: torch.Tensor, others: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map tokens to `(batch, tokens, out_channels)`; neighbors are among `others`, by default the tokens."""
        if not is_unmodified(self.linear, self.norm):
            ends = group(tokens if others is None else others, neighbors)  # (B, G, k, in_channels)
            starts = tokens.unsqueeze(2).expand_as(ends)
            edges = torch.cat([ends - starts, starts], dim=-1)
            # Quantized layers take at most three axes.
            edges = self.linear(edges.flatten(0, 1)).unflatten(0, ends.shape[:2])  # (B, G, k, out_channels)
            return _normed(edges, self.norm).amax(dim=2)
        # Linear in both tokens of an edge: W [f_j - f_i; f_i] = W_a f_j + (W_b - W_a) f_i, computed once per token.
        # Viewed as rows of `in_channels`, the weight yields W_a f and W_b f of every channel side by side, uncopied.
        weight = self.linear.weight.view(-1, tokens.shape[-1])
        terms = nn.functional.linear(tokens, weight)
        other_terms = terms if others is None else nn.functional.linear(others, weight)
        # The rows of all edges would be an eighth of the saved bytes of a training step.
        return recomputed(self.largest_of_edges, terms, neighbors, other_terms)

    def largest_of_edges(
        self, terms: torch.Tensor, neighbors: torch.Tensor, other_terms: torch.Tensor
    ) -> torch.Tensor:
        """Return the maximum over a token's edges `(batch, tokens, out_channels)` after norm and activation.

        `terms` `(batch, tokens, 2 * out_channels)` has a pair (a, b) for every channel: an edge from a token to one of
        its `neighbors` `(batch, tokens, k)`, whose pairs are `other_terms`, is `a[neighbor] - a[token] + b[token]`.
        """
        # Statistics of differences: half precision would round them.
        wide = torch.promote_types(terms.dtype, torch.float32)
        given, own = terms.to(wide).unflatten(-1, (-1, 2)).unbind(dim=-1)  # each (B, G, out_channels)
        ends = other_terms.to(wide).unflatten(-1, (-1, 2))[..., 0]  # (B, others, out_channels)
        edges = group(ends, neighbors) + (own - given).unsqueeze(2)  # (B, G, k, out_channels)
        weight = self.norm.weight.to(wide)
        bias = self.norm.bias.to(wide)
        normed = nn.functional.group_norm(edges.movedim(-1, 1), NUM_GROUPS, weight, bias, self.norm.eps)
        return nn.functional.leaky_relu(normed, _SLOPE).amax(dim=3).transpose(1, 2).to(terms.dtype)


def _normed(rows: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """Group norm and leaky ReLU of `(batch, …, channels)`; statistics are taken over all rows of a cloud."""
    # torch's group norm has channels second.
    return nn.functional.leaky_relu(norm(rows.movedim(-1, 1)), _SLOPE).movedim(1, -1)


def normed_linear(
    rows: torch.Tensor, few: torch.Tensor | None, norm: nn.BatchNorm1d, linear: nn.Linear
) -> torch.Tensor:
    """Compute `linear(relu(norm(rows + few)))`; in training, the norm updates its running statistics.

    Only the summands are kept for the backward pass, a sixth of a step's saved bytes less.

    Args:
        rows: `(rows, channels)`.
        few: `(few, channels)`, each added to every row, or None.
        norm: Norm of `channels`.
        linear: Layer with `channels` inputs.

    Returns:
        `(rows, few, out_channels)`; `(rows, 1, out_channels)` without `few`.
    """
    # A single row of zeros changes no sum.
    if few is None:
        few = rows.new_zeros(1, rows.shape[1])
    if not is_unmodified(norm, linear):
        sums = rows.unsqueeze(1) + few
        return linear(torch.relu(norm(sums.flatten(0, 1)))).view(*sums.shape[:2], -1)
    if norm.training:
        with torch.no_grad():
            mean, variance = _sum_statistics(rows, few)
            count = len(rows) * len(few)
            norm.num_batches_tracked.add_(1)
            # As in torch: without momentum, running statistics are the mean over batches.
            momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), momentum)
    return recomputed(_normed_linear, rows, few, norm, linear)


def _normed_linear(rows: torch.Tensor, few: torch.Tensor, norm: nn.BatchNorm1d, linear: nn.Linear) -> torch.Tensor:
    mean, variance = _sum_statistics(rows, few) if norm.training else (norm.running_mean, norm.running_var)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    # The norm as gain and shift; the shift joins the few rows, not the many.
    shifted = torch.addcmul(norm.bias - mean * scale, few.to(scale.dtype), scale)
    hidden = ((rows * scale).unsqueeze(1) + shifted).relu_()  # (rows, few, channels)
    return linear(hidden.to(linear.weight.dtype))


def _sum_statistics(rows: torch.Tensor, few: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance over all sums, `(channels,)`."""
    # Every row is added to every one of the few, so over all sums the two are independent.
    # Variances of independent summands add up, and so do their means.
    pairs = [torch.var_mean(part.float(), dim=0, correction=0) for part in (rows, few)]
    return pairs[0][1] + pairs[1][1], pairs[0][0] + pairs[1][0]


class Prompts(nn.Module):
    """Learned tokens before those of a cloud, with learned positions.

    Source: Visual Prompt Tuning (arXiv 2203.12119).
    """

    def __init__(self, depth: int, count: int, width: int, dropout: float):
        super().__init__()
        # (1 or layers, prompts, width); one level serves all layers if prompts are shallow.
        self.tokens = nn.Parameter(torch.zeros(depth, count, width))
        self.positions = nn.Parameter(torch.zeros(depth, count, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, level: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens `(1 or batch, prompts, width)` and positions `(1, prompts, width)` of a layer's prompts.

        The tokens are the same for all clouds of a batch, except for dropout.
        """
        tokens = self.tokens[level : level + 1]
        positions = self.positions[level : level + 1]
        if self.training and self.dropout.p:
            tokens = self.dropout(tokens.expand(batch, -1, -1))
        return tokens, positions


@dataclass(frozen=True)
class TeacherPass:
    """One run of a frozen encoder on code vectors with learned prompts.

    Args:
        encoder: The frozen encoder.
        family: Paths of its layers and norms.
        prompts: Prompts of its first layer or of all layers; None for none.
        config: Where positions and norms enter, and along which axis the layers attend.
        recompute: Calls a layer with gradient checkpointing; None without it.
        record_attention: Whether attention weights are recorded: prompts then stay in the sequence.
    """

    encoder: PreTrainedModel
    family: EncoderFamily
    prompts: Prompts | None
    config: ActAutoencoderConfig
    recompute: Callable | None = None
    record_attention: bool = False

    @property
    def is_deep(self) -> bool:
        """True if every layer has prompts of its own, which replace the output of those before (VPT-Deep)."""
        return self.prompts is not None and len(self.prompts.tokens) > 1

    @property
    def attends_over_batch(self) -> bool:
        """True if the layers attend over the clouds of a batch, as in the released program with CLIP."""
        return self.config.released.attention_axis == "batch"

    def run(
        self, tokens: torch.Tensor, positions: torch.Tensor, states: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Run tokens `(batch, tokens, hidden)` and their positions through the layers, in the encoder's dtype.

        Prompts are no part of the result. The input of the first layer and the output of each, without the prompts,
        are appended to `states`.
        """
        dtype = self.encoder.dtype
        tokens = tokens.to(dtype)
        positions = positions.to(dtype)
        front, front_positions = self._prompts_of(0, tokens)
        # The norm between embeddings and first layer, of encoders such as CLIP; positions come after it.
        if self.config.use_input_norm:
            norm = self.family.norm_of(self.encoder, self.family.input_norm)
            if norm is not None:
                tokens = norm(tokens)
                front = norm(front) if front.shape[1] else front
        layers = self.family.layers_of(self.encoder)
        # Sequences begin with prompts: (B, prompts + G, H)
        sequence = nn.functional.pad(tokens, (0, 0, front.shape[1], 0))
        if self.attends_over_batch:
            sequence = sequence.transpose(0, 1)
        # Causal encoders too attend in both directions here: codes have no order.
        mask = create_bidirectional_mask(config=self.encoder.config, inputs_embeds=sequence, attention_mask=None)
        places = shared_position(self.encoder, self.family, sequence)
        inputs = self.family.layer_inputs(LayerPass(self.encoder, layers, sequence, mask, places, "first_view"))
        if states is not None:
            states.append(tokens)
        # Where the output for prompts is read by nobody, half of a layer's work need not be done.
        saves_queries = prefix_attention(self.encoder) if self._can_skip_prompts(front) else nullcontext(False)
        with saves_queries as skips_prompts:
            for number, (layer, arguments) in enumerate(zip(layers, inputs, strict=True)):
                if number and self.is_deep:
                    front, front_positions = self._prompts_of(number, tokens)
                in_every_layer = self.config.position_injection == "every_layer"
                # Those of prompts are added when the prompts enter: with deep prompts, before every layer.
                if front.shape[1] and (in_every_layer or self.is_deep or number == 0):
                    front = front + front_positions
                if in_every_layer or number == 0:
                    tokens = tokens + positions
                # Nobody reads what this layer makes of its prompts.
                prompts_end_here = self.is_deep or number == len(layers) - 1
                prefix = None
                if skips_prompts and prompts_end_here:
                    prefix = compute_prefix(layer, front, **arguments)
                if prefix is not None:
                    tokens = hidden_of(run_with_prefix(layer, tokens, prefix, **arguments))
                else:
                    front, tokens = self._run_layer(layer, front, tokens, arguments)
                if states is not None:
                    states.append(tokens)
        final_norm = self.family.norm_of(self.encoder, self.family.final_norm) if self.config.use_final_norm else None
        return tokens if final_norm is None else final_norm(tokens)

    def _prompts_of(self, number: int, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prompts of a layer and their positions, `(1 or batch, prompts, hidden)` each."""
        if self.prompts is None:
            # A sequence of length 0 stands for no prompts.
            none = tokens.new_empty(1, 0, tokens.shape[-1])
            return none, none
        front, positions = self.prompts(number, len(tokens))
        return front.to(self.encoder.dtype), positions.to(self.encoder.dtype)

    def _can_skip_prompts(self, front: torch.Tensor) -> bool:
        """Return whether a layer whose output for prompts is discarded may compute only their keys and values."""
        if not front.shape[1] or self.attends_over_batch:
            return False
        # A layer that is run again, or whose weights are returned, needs its whole sequence.
        if self.recompute is not None or self.record_attention:
            return False
        # Others have masks or positions for the whole sequence.
        return self.family.ignores_places

    def _run_layer(
        self, layer: nn.Module, front: torch.Tensor, tokens: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a layer on the sequence of prompts and tokens, and split its output again."""
        count = front.shape[1]
        sequence = tokens
        if count:
            sequence = torch.cat([front.expand(len(tokens), -1, -1), tokens], dim=1)
        if self.attends_over_batch:
            sequence = sequence.transpose(0, 1)
        call = partial(layer, **arguments)
        # Layers that `every_n_layers` leaves out of checkpointing say so themselves.
        if self.recompute is not None and may_run_again(layer):
            call = partial(self.recompute, call)
        sequence = hidden_of(call(sequence))
        if self.attends_over_batch:
            sequence = sequence.transpose(0, 1)
        return sequence[:, :count], sequence[:, count:]


def shared_position(encoder: PreTrainedModel, family: EncoderFamily, hidden_states: torch.Tensor) -> TokenPlaces:
    """Return one position for all tokens `(batch, tokens, hidden)`: the middle of the encoder's line or plane."""
    # Encoders with positions in their embeddings alone need no place at all.
    rows = 1
    columns = None
    axes = 1
    if not family.ignores_places:
        table = family.positions_of(encoder)
        rows = table.rows
        columns = table.columns
        axes = 1 if table.kind == "line" else 2
    columns = columns or 2
    # Prompts and codes bring learned positions of their own. At equal places, those in the encoder's layers, relative
    # or rotary, are the same for all pairs.
    middle = constant([(columns - 1) / 2, (rows - 1) / 2][:axes], hidden_states, torch.float32)
    entry = middle.expand(hidden_states.shape[0], 1, hidden_states.shape[1], axes)
    return TokenPlaces(entry, rows, columns, class_tokens=0)


class FoldingDecoder(nn.Module):
    """Predict coarse points with an MLP, and fine points by folding a grid of four corners around each of them.

    Source: FoldingNet (arXiv 1712.07262) as Point-BERT (arXiv 2111.14819) uses it.
    """

    def __init__(self, width: int, group_size: int, coarse_width: int = 1024, folding_width: int = 512):
        super().__init__()
        self.num_coarse = group_size // POINTS_PER_COARSE_POINT
        self.coarse = nn.Sequential(
            nn.Linear(width, coarse_width),
            nn.ReLU(inplace=True),
            nn.Linear(coarse_width, coarse_width),
            nn.ReLU(inplace=True),
            nn.Linear(coarse_width, 3 * self.num_coarse),
        )
        # Input: token, corner, coarse point, in this order.
        self.lift = nn.Linear(width + 2 + 3, folding_width)
        self.lift_norm = nn.BatchNorm1d(folding_width)
        self.widen = nn.Linear(folding_width, folding_width)
        self.widen_norm = nn.BatchNorm1d(folding_width)
        self.out = nn.Linear(folding_width, 3)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct the points of patches, relative to their centers.

        Returns coarse points `(batch, groups, group_size / 4, 3)`, and fine points `(batch, groups, group_size, 3)`,
        four for each coarse point in turn.
        """
        batch, groups, width = tokens.shape
        # (patches, coarse points, 3)
        coarse = self.coarse(tokens).view(batch * groups, self.num_coarse, 3)
        # (patches, coarse points, corners of each, channels)
        shape = (*coarse.shape[:2], POINTS_PER_COARSE_POINT, -1)
        corners = constant(_CORNERS, coarse)
        if is_unmodified(self.lift):
            # Linear: the token's term is computed once per patch, the coarse point's once per point.
            token_weight, corner_weight, coarse_weight = self.lift.weight.split((width, 2, 3), dim=1)
            linear = nn.functional.linear
            patch_rows = linear(tokens, token_weight, self.lift.bias).view(batch * groups, 1, -1)
            rows = (patch_rows + linear(coarse, coarse_weight)).flatten(0, 1)
            corner_rows = linear(corners.to(rows.dtype), corner_weight)
        else:
            inputs = [tokens.reshape(len(coarse), 1, 1, -1), corners, coarse.unsqueeze(2)]
            inputs = torch.cat([part.expand(*shape) for part in inputs], dim=-1)
            rows, corner_rows = self.lift(inputs.flatten(0, 2)), None  # (patches * coarse points * 4, folding_width)
        rows = normed_linear(rows, corner_rows, self.lift_norm, self.widen)
        folded = normed_linear(rows.flatten(0, 1), None, self.widen_norm, self.out)
        # Folding predicts where a point is around its coarse point.
        fine = folded.view(*shape) + coarse.unsqueeze(2)
        return coarse.view(batch, groups, -1, 3), fine.view(batch, groups, -1, 3)


@dataclass
class ActAutoencoderOutput(ModelOutput):
    """Reconstruction of point clouds, patch by patch.

    Args:
        loss: `reconstruction_loss + kl_weight * kl_loss`, and in training mode `+ code_loss`.
        reconstruction_loss: Chamfer distance (L1) of coarse points to the patches plus that of fine points.
        kl_loss: Unevenness of the codes' use, see `uniform_code_loss`.
        code_loss: With the nearest codes: mean squared difference of tokens and codes, weighted for the tokens by
            `commitment_weight`; also for the codes unless they are moving averages. Else None.
        fine: `(batch, groups, group_size, 3)`, reconstructed points relative to the centers.
        coarse: `(batch, groups, group_size / 4, 3)`.
        whole_fine: `(batch, groups * group_size, 3)`, the full cloud, without a gradient.
        whole_coarse: `(batch, groups * group_size / 4, 3)`.
        neighborhoods: `(batch, groups, group_size, channels)`, the patches themselves.
        centers: `(batch, groups, 3)`.
        logits: `(batch, groups, codes)`, scores of the codes.
        token_ids: `(batch, groups)`, the selected codes, or the most likely ones if codes are mixed.
        hidden_states: On request, the input of the teacher's first layer and the output of each layer, without prompts
            and before the final norm: layers + 1 times `(batch, groups, teacher hidden)`.
        attentions: On request, the weights of the teacher's layers, `(batch, heads, prompts + groups, prompts +
            groups)`.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    kl_loss: torch.Tensor | None = None
    code_loss: torch.Tensor | None = None
    fine: torch.Tensor | None = None
    coarse: torch.Tensor | None = None
    whole_fine: torch.Tensor | None = None
    whole_coarse: torch.Tensor | None = None
    neighborhoods: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ActAutoencoder(FrozenEncoderMixin, PointTokensMixin, PreTrainedModel):
    """Discrete autoencoder: points to codes, through a frozen teacher, and back to points.

    With an `encoder_config`, a frozen transformer reads the code vectors along with learned prompts (ACT's cross-modal
    teacher); without one, this is Point-BERT's dVAE.

    Source: ACT (arXiv 2212.08320), Sec. 3.1; Point-BERT (arXiv 2111.14819), Sec. 3.1.
    """

    config_class = ActAutoencoderConfig
    config: ActAutoencoderConfig
    base_model_prefix = "autoencoder"
    output_class = ActAutoencoderOutput

    def __init__(self, config: ActAutoencoderConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        width = config.hidden_size
        graph = (config.graph_input_width, config.graph_widths)
        self.gradient_checkpointing = False
        token_width = config.patch_token_width or width
        decoder_width = config.decoder_width or width
        self.patch_encoder = PatchEncoder(config.in_channels, token_width, config.patch_widths)
        # With a projection, the graph convolution gives the scores of all codes at once, as published.
        is_projected = config.code_scores == "projection"
        self.graph_encoder = GraphConvolution(token_width, config.num_codes if is_projected else width, *graph)
        code_width = config.code_width or width
        # The graph convolution ends with a leaky ReLU, which leaves half of the directions almost unused.
        self.code_in = None if is_projected else nn.Linear(width, code_width)
        norm_width = config.num_codes if is_projected else code_width
        self.code_norm = nn.BatchNorm1d(norm_width, affine=False) if config.code_norm else None
        self.codebook = Codebook(
            config.num_codes,
            code_width,
            config.code_scores,
            config.code_scale,
            config.code_ema_decay,
            config.code_restart_share,
        )
        self.code_out = None if config.code_width is None else nn.Linear(code_width, width)
        self.encoder = None
        if config.encoder_config is not None:
            self.adopt_encoder(encoder)
            self._encoder_trains = config.released.teacher_dropout
            teacher_width = config.encoder_config.hidden_size
            self.teacher_in = nn.Linear(width, teacher_width)
            # All tokens pass this module before the teacher; `get_input_embeddings` returns it.
            self.input_tokens = nn.Identity()
            self.position_embed = nn.Sequential(
                nn.Linear(3, _POSITION_WIDTH), nn.GELU(), nn.Linear(_POSITION_WIDTH, teacher_width)
            )
            self.prompts = None
            if config.num_prompts:
                depth = len(self.family.layers_of(self.encoder)) if config.prompt_depth == "deep" else 1
                self.prompts = Prompts(depth, config.num_prompts, teacher_width, config.prompt_dropout)
            self.teacher_out = nn.Linear(teacher_width, width)
        elif encoder is not None:
            raise ValueError("encoder: given, but config.encoder_config is None; expected a config of this encoder")
        self.graph_decoder = GraphConvolution(width, decoder_width, *graph)
        self.decoder = FoldingDecoder(decoder_width, config.group_size, config.coarse_width, config.folding_width)
        self.post_init()

    @classmethod
    def from_teacher_pretrained(
        cls, encoder_name_or_path: str | os.PathLike | None = None, **kwargs: Any
    ) -> ActAutoencoder:
        """Build an untrained autoencoder around a pretrained text, vision or audio encoder, which stays frozen.

        The same as `from_encoder_pretrained`, which describes each setting, under ACT's name.
        """
        return cls.from_encoder_pretrained(encoder_name_or_path, **kwargs)

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        temperature: float = 1.0,
        kl_weight: float = 0.0,
        hard: bool | None = None,
        noise: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ActAutoencoderOutput:
        """Reconstruct point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            temperature: Temperature of the Gumbel softmax, see `gumbel_temperature`.
            kl_weight: Weight of the KL term in the loss, see `hf_any3d.modeling.act.kl_weight`.
            hard: Whether to use one code per token (with a straight-through gradient) or a mixture; None uses a
                mixture in training mode and one code in eval mode.
            noise: Gumbel noise, broadcastable to `(batch, groups, codes)`. None draws it in training mode, and in eval
                mode if `config.released.noise_in_eval` is set.
            return_loss: Whether to compute the losses.
            output_hidden_states: Whether to return the teacher's hidden states; None for the config's choice.
            output_attentions: The same for its attention weights, which only eager attention returns.
        """
        # Without a teacher there are no layers whose states or weights could be returned.
        attention = None if self.encoder is None else self.encoder.config._attn_implementation
        return_hidden, return_attentions = requested_outputs(
            self.config, output_hidden_states, output_attentions, attention
        )
        if hard is False and self.config.quantizer == "nearest":
            raise ValueError("hard=False with quantizer='nearest'; expected None or True")
        patches = self.patch(points)
        neighbors = self.neighbors_of(patches)
        tokens = self._encode(patches, neighbors)
        learns = self.codebook.learns
        # It changes code vectors in place: before they are looked up, as the backward pass needs what was read.
        if learns and self.config.code_restart_share:
            self.codebook.restart(tokens)
        logits = self._score(tokens)  # (B, G, codes)
        codes, token_ids, code_loss = self._select_codes(tokens, logits, temperature, hard, noise)
        if learns and self.codebook.updates_itself:
            self.codebook.update(tokens, token_ids)
        states = [] if return_hidden else None
        recorder = self.record_attentions() if return_attentions else None
        with recorder or nullcontext():
            features = self.teach(codes, patches.centers, states, return_attentions)  # (B, G, H)
            attentions = None if recorder is None else recorder.weights
        coarse, fine = self.decoder(self.graph_decoder(features, neighbors))
        output = ActAutoencoderOutput(
            fine=fine,
            coarse=coarse,
            whole_fine=_full_clouds(fine, patches.centers),
            whole_coarse=_full_clouds(coarse, patches.centers),
            neighborhoods=patches.neighborhoods,
            centers=patches.centers,
            logits=logits,
            token_ids=token_ids,
            hidden_states=None if states is None else tuple(states),
            attentions=attentions,
        )
        if return_loss:
            self._add_losses(output, kl_weight, code_loss)
        return output

    def _select_codes(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor,
        temperature: float,
        hard: bool | None,
        noise: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Choose or mix code vectors: `(batch, groups, code width)`, their numbers, and with nearest codes a loss."""
        noise = self._noise(logits, noise)
        if self.config.quantizer != "nearest":
            if hard is None:
                hard = not self.training
            codes, token_ids = self.codebook(logits, temperature, hard, noise)
            return codes, token_ids, None
        codes, token_ids, (to_codes, to_tokens) = self.codebook.nearest(tokens, logits, noise)
        # VQ-VAE, Eq. 3: the straight-through gradient passes by the codes, so two terms pull the two together.
        loss = self.config.commitment_weight * to_codes
        # Moving averages need no gradient (Appendix A.1).
        if self.config.code_ema_decay is None:
            loss = loss + to_tokens
        return codes, token_ids, loss

    def _add_losses(self, output: ActAutoencoderOutput, kl_weight: float, code_loss: torch.Tensor | None) -> None:
        """Set the losses of an output."""
        # Each patch is compared with its own points, not the whole cloud with the whole cloud.
        target = output.neighborhoods[..., :3].flatten(0, 1)  # (B * G, M, 3)
        coarse_loss = chamfer_distance(output.coarse.flatten(0, 1), target)
        fine_loss = chamfer_distance(output.fine.flatten(0, 1), target)
        output.reconstruction_loss = coarse_loss + fine_loss
        # Without a weight the term is only reported.
        with torch.set_grad_enabled(torch.is_grad_enabled() and kl_weight != 0):
            output.kl_loss = uniform_code_loss(output.logits)
        output.loss = output.reconstruction_loss + kl_weight * output.kl_loss
        output.code_loss = code_loss
        if code_loss is not None and self.training:
            output.loss = output.loss + code_loss

    @torch.no_grad()
    def teacher_features(
        self,
        points: torch.Tensor | None = None,
        patches: Patches | None = None,
        noise: torch.Tensor | None = None,
        through_graph: bool = True,
    ) -> torch.Tensor:
        """Compute a student's targets `(batch, groups, hidden_size)` of clouds, or of patches such as a student's.

        They are the decoder's input for the most likely code of every patch, or with `through_graph=False` the
        teacher's output, the input of the graph convolution before the decoder. Gumbel noise is as in `forward`.
        """
        if (points is None) == (patches is None):
            raise ValueError("points and patches are both given or both None; pass one of them")
        patches = self.patch(points) if patches is None else patches
        neighbors = self.neighbors_of(patches)
        logits = self._score(self._encode(patches, neighbors))
        # One code for each patch, as targets are of clouds and not of mixtures.
        codes, _ = self.codebook(logits, hard=True, noise=self._noise(logits, noise))
        features = self.teach(codes, patches.centers)
        return self.graph_decoder(features, neighbors) if through_graph else features

    def patch(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into patches."""
        return cut_patches(points, self.config, self.codebook.weight.dtype)

    def score_codes(self, patches: Patches) -> torch.Tensor:
        """Compute the scores of the codes for every patch, `(batch, groups, codes)`."""
        return self._score(self._encode(patches, self.neighbors_of(patches)))

    def neighbors_of(self, patches: Patches) -> torch.Tensor:
        """Return the nearest patches of each, `(batch, groups, graph_neighbors)`."""
        return knn(patches.centers, patches.centers, self.config.graph_neighbors)

    def _encode(self, patches: Patches, neighbors: torch.Tensor) -> torch.Tensor:
        """Compute what the codes' scores are computed from: the scores themselves with a projection, else tokens."""
        tokens = self.graph_encoder(self.patch_encoder(patches.neighborhoods), neighbors)
        tokens = tokens if self.code_in is None else self.code_in(tokens)  # (B, G, H or codes)
        return tokens if self.code_norm is None else self.code_norm(tokens.flatten(0, 1)).view_as(tokens)

    def _score(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.config.code_scores != "projection":
            return self.codebook.score(tokens)
        return tokens if self.config.code_scale == 1 else tokens * self.config.code_scale

    def _noise(self, logits: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor | None:
        # Nearest codes need no noise to be explored.
        draws = self.training and self.config.quantizer == "gumbel"
        if noise is None and (draws or self.config.released.noise_in_eval):
            return gumbel_noise(logits)
        return noise

    def teach(
        self,
        codes: torch.Tensor,
        centers: torch.Tensor,
        states: list[torch.Tensor] | None = None,
        record_attention: bool = False,
    ) -> torch.Tensor:
        """Run the teacher on codes `(batch, groups, code width)` of patches: `(batch, groups, hidden_size)`.

        `states` gets the teacher's hidden states, see `TeacherPass.run`.
        """
        if self.code_out is not None:
            codes = self.code_out(codes)
        if self.encoder is None:
            return codes
        self.warn_if_encoder_is_random()
        self.warn_about_batch_dependence()
        positions = self.position_embed(centers.to(self.codebook.weight.dtype))
        tokens = self.input_tokens(self.teacher_in(codes))
        # As released without prompts: nothing before the teacher then learns from the reconstruction.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.released.detach_teacher):
            # Frozen layers stay in eval mode, so their own switch for gradient checkpointing never fires.
            recompute = self._gradient_checkpointing_func if self.training and self.gradient_checkpointing else None
            teacher = TeacherPass(self.encoder, self.family, self.prompts, self.config, recompute, record_attention)
            output = teacher.run(tokens, positions, states)
        return self.teacher_out(output.to(codes.dtype))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # Torch's default for linear layers, which the released program keeps.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        elif isinstance(module, Codebook):
            init.normal_(module.weight)
            for name in ("counts", "sums"):
                if hasattr(module, name):
                    init.zeros_(getattr(module, name))
        elif isinstance(module, Prompts):
            init.trunc_normal_(module.tokens, std=self.config.initializer_range)
            init.trunc_normal_(module.positions, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


def _full_clouds(local: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Compute full clouds `(batch, groups * points, 3)` from points relative to the centers, without a gradient."""
    # For pictures and metrics; the loss compares patches.
    return (local.detach() + centers.unsqueeze(2)).flatten(1, 2)
