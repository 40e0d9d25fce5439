"""Bridge from the point encoder to the language model: point MLP, query experts, Q-Former, projector."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Blip2QFormerModel, PreTrainedConfig

from hf_any3d.modeling.layers.direct_weights import onloaded
from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig


@dataclass
class Routing:
    """The query sets that are selected for each cloud."""

    logits: torch.Tensor | None  # (clouds, experts), output of the router; None for a constant router
    index: torch.Tensor  # (clouds, chosen), indices of the selected sets, ascending
    weights: torch.Tensor  # (clouds, chosen)

    def mix(self, outputs: torch.Tensor) -> torch.Tensor:
        """Sum `(clouds, chosen, …)` by weight, to `(clouds, …)`."""
        # (clouds, chosen, 1, …), one axis for each of the outputs.
        weights = self.weights.to(outputs.dtype).view(*self.weights.shape, *[1] * (outputs.ndim - 2))
        return (weights * outputs).sum(dim=1)

    def load_balancing_loss(self) -> torch.Tensor:
        """Measure how unevenly clouds use the sets: from 1, for even use, to the number of sets.

        Undefined for a constant router.

        Source: Switch Transformers (arXiv 2101.03961), Eq. 4, with the fractions of all selected sets.
        """
        experts = self.logits.shape[-1]
        # The choice has no gradient; the probabilities it is multiplied with do, and fall where the share is large.
        share = nn.functional.one_hot(self.index, experts).float().mean(dim=(0, 1))  # (experts,)
        return experts * (share * self.logits.float().softmax(dim=-1).mean(dim=0)).sum()


class QueryExperts(nn.Module):
    """Query sets for the Q-Former, and their router.

    Without query experts, only the first set is used.

    Source: MiniGPT-3D, Sec. 3.2.
    """

    def __init__(self, config: MiniGPT3DConfig):
        super().__init__()
        self.config = config
        # The first set is that of the stages before, so that their checkpoints fit.
        shape = (config.num_query_tokens, config.qformer_config.hidden_size)
        self.queries = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(config.num_query_experts))
        self.router = nn.Sequential(
            nn.Linear(2 * config.point_config.hidden_size, config.router_width),
            nn.GELU(),
            nn.Linear(config.router_width, config.num_query_experts),
        )

    def route(self, point_tokens: torch.Tensor, mask: torch.Tensor | None = None) -> Routing:
        """Select sets by the class token and the maximum of the patches; arguments are those of `Bridge.forward`."""
        count = len(self.queries)
        clouds = len(point_tokens)
        every = torch.arange(count, device=point_tokens.device).expand(clouds, -1)
        if self.config.router == "constant":
            return Routing(None, every, point_tokens.new_full((clouds, count), 1 / count))
        patches = point_tokens[:, 1:]
        if mask is not None:
            # Filled-up tokens must not be the maximum.
            patches = patches.masked_fill(~mask[:, 1:, None], -torch.inf)
        cloud_features = torch.cat([point_tokens[:, 0], patches.amax(dim=1)], dim=-1)  # (clouds, 2 * point width)
        logits = self.router(cloud_features)
        # In full precision, since near probabilities would be equal in half precision and the choice arbitrary.
        weights = logits.float().softmax(dim=-1)
        if self.config.router == "soft":
            return Routing(logits, every, weights)
        # In the order of their numbers, so that equal choices run with equal rounding.
        index = weights.topk(self.config.router_top_k).indices.sort(dim=-1).values
        weights = weights.gather(1, index)
        if self.config.normalize_router_weights:
            # The released program does not: the chosen sets' weights then add up to less than 1.
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(logits, index, weights)

    def first(self, clouds: int) -> torch.Tensor:
        """Return the queries of the first set for each cloud, `(clouds, 1, num_query_tokens, hidden)`."""
        with onloaded(self.queries):
            return self.queries[0].expand(clouds, 1, -1, -1)

    def chosen(self, routing: Routing) -> torch.Tensor:
        """Return the queries of the selected sets, `(clouds, chosen, num_query_tokens, hidden)`."""
        # Sets that were not selected get a zero gradient, not None, so that optimizers treat all sets alike.
        with onloaded(self.queries):
            return torch.stack(list(self.queries))[routing.index]


@dataclass
class Bridged:
    """Tokens for the language model."""

    tokens: torch.Tensor  # (clouds, num_query_tokens, text hidden)
    routing: Routing | None = None  # None if only the first query set was used


class PointMlp(nn.Module):
    """Linear layers with GELU between them, from the width of point tokens to the Q-Former's encoder width."""

    def __init__(self, in_width: int, hidden_widths: tuple[int, ...], out_width: int):
        super().__init__()
        # Pairs of neighbors in this list; the second list is one shorter.
        widths = (in_width, *hidden_widths, out_width)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `(…, in_width)` to `(…, out_width)`."""
        first, *others = self.layers
        tokens = first(tokens)
        for layer in others:
            tokens = layer(nn.functional.gelu(tokens))
        return tokens


class Projector(nn.Module):
    """Two linear layers without an activation, from the Q-Former's width to the language model's."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `(…, in_width)` to `(…, out_width)`."""
        return self.fc2(self.fc1(tokens))


def word_vector_width(config: PreTrainedConfig) -> int:
    """Return the width of a language model's word vectors, which may be narrower than its layers (OPT-350m)."""
    # Composite checkpoints, such as language models that see images, nest the language model's config.
    text = config.get_text_config()
    for name in ("word_embed_proj_dim", "input_embedding_size", "embedding_size"):
        if getattr(text, name, None):
            return getattr(text, name)
    return text.hidden_size


class Bridge(nn.Module):
    """All modules between the point encoder and the language model.

    Source: MiniGPT-3D, Sec. 3.1 and 3.2.
    """

    def __init__(self, config: MiniGPT3DConfig, qformer: Blip2QFormerModel | None = None):
        super().__init__()
        point_width = config.point_config.hidden_size
        qformer_config = config.qformer_config
        self.config = config
        self.point_mlp = PointMlp(point_width, tuple(config.point_mlp_widths), qformer_config.encoder_hidden_size)
        self.experts = QueryExperts(config)
        self.qformer = Blip2QFormerModel._from_config(qformer_config) if qformer is None else qformer
        width = word_vector_width(config.text_config)
        self.projector = Projector(qformer_config.hidden_size, config.projector_width, width)

    def forward(self, point_tokens: torch.Tensor, mask: torch.Tensor | None = None) -> Bridged:
        """Turn tokens of clouds `(clouds, 1 + groups, point width)`, the class token first, into the language model's.

        The mask `(clouds, 1 + groups)` is False where a cloud has fewer tokens; None if all have as many.
        """
        routing = self.experts.route(point_tokens, mask) if self.config.use_query_experts else None
        encoded = self.point_mlp(point_tokens)  # (clouds, 1 + groups, encoder_hidden_size)
        if routing is None:
            queried = self.query(self.experts.first(len(encoded)), encoded, mask)[:, 0]
        else:
            # The experts are sets of queries alone: all go through one Q-Former.
            queried = routing.mix(self.query(self.experts.chosen(routing), encoded, mask))
        return Bridged(self.projector(queried), routing)

    def query(
        self, queries: torch.Tensor, encoded: torch.Tensor, encoded_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the Q-Former on one or more query sets per cloud: `(clouds, sets, num_query_tokens, hidden)`.

        All sets of a cloud run as one sequence, in which queries attend only to those of their own set. The keys and
        values of the cloud, most of the work, are thus computed once and not for each set. Queries attend to tokens
        `encoded (clouds, tokens, encoder_hidden_size)` where the mask `(clouds, tokens)` is True, or to all.
        """
        _, sets, count, _ = queries.shape
        mask = None
        if sets > 1:
            own_set = torch.arange(sets, device=queries.device).repeat_interleave(count)
            mask = torch.zeros(1, 1, sets * count, sets * count, device=queries.device, dtype=queries.dtype)
            mask.masked_fill_(own_set[:, None] != own_set, torch.finfo(mask.dtype).min)
            mask = mask.expand(len(queries), -1, -1, -1)
        # The axes of sets and queries become one sequence: (clouds, sets * query tokens, hidden).
        output = self.qformer(
            queries.flatten(1, 2),
            encoder_hidden_states=encoded,
            encoder_attention_mask=None if encoded_mask is None else encoded_mask.to(encoded.dtype),
            attention_mask=mask,
            return_dict=True,
        )
        return output.last_hidden_state.unflatten(1, (sets, count))
