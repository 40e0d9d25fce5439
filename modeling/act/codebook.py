"""Codebook of discrete tokens: Gumbel softmax or nearest code in training, plain look-up without gradients."""

import math

import torch
from torch import nn

COUNT_DECAY = 0.99
"""Decay per step of the counts of patches per code, if the code vectors are no moving averages."""


def gumbel_temperature(iteration: int, steps: int = 100_000, start: float = 1.0, end: float = 0.0625) -> float:
    """Return the temperature of the Gumbel softmax: half a cosine from `start` to `end` over `steps`, then `end`.

    Source: ACT (arXiv 2212.08320), Sec. 3, with the lengths of its released program.
    """
    return _half_cosine(iteration, steps, start, end)


def kl_weight(iteration: int, delay: int = 10_000, steps: int = 100_000, end: float = 0.1) -> float:
    """Return the weight of the KL term: 0 for `delay` steps, half a cosine up to `end` over `steps`, then `end`.

    Source: the released program of ACT (arXiv 2212.08320).
    """
    return 0.0 if iteration < delay else _half_cosine(iteration - delay, steps, 0.0, end)


def _half_cosine(iteration: int, steps: int, start: float, end: float) -> float:
    if iteration >= steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * iteration / steps)) / 2


class Codebook(nn.Module):
    """Vectors of discrete codes.

    Args:
        num_codes: Number of codes.
        width: Channels of a code.
        scores: Scores that select codes: "projection" for scores that are computed without the code vectors,
            "distance" for negative squared distances between tokens and codes, divided by the width (VQ-VAE, arXiv
            1711.00937), "cosine" for cosine similarities (ViT-VQGAN, arXiv 2110.04627).
        scale: Factor of the scores.
        ema_decay: Decay per step of code vectors that are moving averages of the tokens that select them (VQ-VAE,
            Appendix A.1); None for code vectors that are trained by gradients.
        restart_share: Codes with less than this share of the mean number of tokens are replaced by random tokens of
            the batch (Jukebox, arXiv 2005.00341, Sec. 3.1), in the first step all of them; 0 for no restarts.
    """

    changes_itself = True
    counts: torch.Tensor
    sums: torch.Tensor

    def __init__(
        self,
        num_codes: int,
        width: int,
        scores: str = "projection",
        scale: float = 1.0,
        ema_decay: float | None = None,
        restart_share: float = 0.0,
    ):
        super().__init__()
        self.scores = scores
        self.scale = scale
        self.ema_decay = ema_decay
        self.restart_share = restart_share
        if ema_decay is None:
            self.weight = nn.Parameter(torch.empty(num_codes, width))
        else:
            self.register_buffer("weight", torch.empty(num_codes, width))
            self.register_buffer("sums", torch.zeros(num_codes, width))
        if self.updates_itself:
            self.register_buffer("counts", torch.zeros(num_codes))
        nn.init.normal_(self.weight)

    @property
    def updates_itself(self) -> bool:
        """True if training changes the code vectors by other means than gradients."""
        return self.ema_decay is not None or self.restart_share > 0

    @property
    def learns(self) -> bool:
        """True in a step of training; not in passes that only measure, nor below an adapter."""
        return self.training and torch.is_grad_enabled()

    @property
    def vectors(self) -> torch.Tensor:
        """Code vectors `(codes, width)`; with cosine similarities all have the norm `sqrt(width)`."""
        return self._on_sphere(self.weight)

    def _on_sphere(self, rows: torch.Tensor) -> torch.Tensor:
        # The norm of vectors from a standard normal distribution, as initial codes are.
        return nn.functional.normalize(rows, dim=-1) * rows.shape[-1] ** 0.5 if self.scores == "cosine" else rows

    def score(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compare tokens `(batch, groups, width)` with all codes: `(batch, groups, codes)`."""
        tokens = self._on_sphere(tokens)
        codes = self.vectors
        # `update` changes moving averages before the backward pass, which needs the vectors of the forward pass.
        codes = codes if self.ema_decay is None else codes.clone()
        products = tokens @ codes.T / tokens.shape[-1]
        if self.scores == "cosine":
            return self.scale * products
        # The square of a difference, expanded: the differences themselves would be tokens times codes times channels.
        norms = tokens.square().mean(dim=-1, keepdim=True) + codes.square().mean(dim=-1)
        return self.scale * (2 * products - norms)

    @torch.no_grad()
    def restart(self, tokens: torch.Tensor) -> torch.Tensor:
        """Replace codes that are hardly used by random tokens; returns `(codes,)`, True for replaced codes.

        Call it before the codes are looked up, which saves their vectors for the backward pass.
        """
        rows = self._on_sphere(tokens.detach()).flatten(0, 1).to(self.weight.dtype)  # (tokens, width)
        expected = len(rows) / len(self.weight)
        dead = self.counts < self.restart_share * expected
        order = torch.randperm(len(rows), device=rows.device)
        # No token twice, unless there are more codes than tokens.
        drawn = rows[order[torch.arange(len(self.weight), device=rows.device) % len(rows)]]  # (codes, width)
        self.weight.copy_(torch.where(dead.unsqueeze(1), drawn, self.weight))
        # As if they had an equal share of the tokens, or they would be replaced again in the next step.
        self.counts.masked_fill_(dead, expected)
        if self.ema_decay is not None:
            self.sums.copy_(torch.where(dead.unsqueeze(1), drawn * expected, self.sums))
        return dead

    @torch.no_grad()
    def update(self, tokens: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Count the tokens `(batch, groups, width)` of a training step by their codes, and move moving averages."""
        if self.counts.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the counts of codes have dtype {self.counts.dtype}; expected float32 (train in half precision with "
                "autocast: --bf16)"
            )
        decay = COUNT_DECAY if self.ema_decay is None else self.ema_decay
        index = token_ids.flatten()
        counts = torch.zeros_like(self.counts).index_add_(0, index, self.counts.new_ones(len(index)))
        self.counts.lerp_(counts, 1 - decay)
        if self.ema_decay is None:
            return
        rows = self._on_sphere(tokens.detach()).flatten(0, 1).to(self.sums.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, index, rows)
        self.sums.lerp_(sums, 1 - decay)
        # A code without tokens keeps its vector: sum and count have decayed alike, perhaps to zero.
        means = self.sums / self.counts.clamp(min=torch.finfo(self.counts.dtype).tiny).unsqueeze(1)
        self.weight.copy_(torch.where((counts > 0).unsqueeze(1), means, self.weight))

    def nearest(
        self, tokens: torch.Tensor, logits: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Replace tokens `(batch, groups, width)` by their codes, with the gradient of the tokens (straight-through).

        Logits are `(batch, groups, codes)`, from `score`. Returns vectors of the shape of the tokens; indices of the
        codes `(batch, groups)`; and their mean squared difference twice, with a gradient for the tokens alone and with
        one for the codes alone (VQ-VAE, Eq. 3).
        """
        scores = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        token_ids = (scores if noise is None else scores + noise).argmax(dim=-1)
        tokens = self._on_sphere(tokens)
        codes = nn.functional.embedding(token_ids, self.vectors)
        mse = nn.functional.mse_loss
        pulls = mse(tokens, codes.detach()), mse(codes, tokens.detach())
        return tokens + (codes - tokens).detach(), token_ids, pulls

    def forward(
        self, logits: torch.Tensor, temperature: float = 1.0, hard: bool = False, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Look up the codes that logits `(batch, groups, codes)` select, plus Gumbel `noise` if there is any.

        Returns vectors `(batch, groups, width)`, a mixture by the softmax of scores over `temperature`, or with `hard`
        the most likely code, with the gradient of the mixture; and the indices of the most likely codes `(batch,
        groups)`.
        """
        # Half precision is too coarse for the noise and would make different scores equal.
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = scores if noise is None else scores + noise
        token_ids = scores.detach().argmax(dim=-1)
        needs_gradient = torch.is_grad_enabled() and (logits.requires_grad or self.weight.requires_grad)
        if hard and not needs_gradient:
            return nn.functional.embedding(token_ids, self.vectors), token_ids
        probabilities = (scores / temperature).softmax(dim=-1)
        if hard:
            # The value of the one-hot vector, the gradient of the probabilities.
            one_hot = torch.zeros_like(probabilities).scatter_(-1, token_ids.unsqueeze(-1), 1.0)
            probabilities = one_hot + (probabilities - probabilities.detach())
        return probabilities.to(self.weight.dtype) @ self.vectors, token_ids


def gumbel_noise(like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw standard Gumbel noise with the shape and device of a tensor, in float32, or float64 for a float64 tensor.

    Half precision would truncate the distribution: it cannot represent the uniform numbers just below 1, which give
    the largest noise.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    # exponential_ takes ten times as long on a CPU.
    # Contiguous, so that the noise of a seed does not depend on the memory layout of the logits.
    uniform = torch.empty(like.shape, dtype=dtype, device=like.device).uniform_(generator=generator)
    return uniform.clamp_min_(torch.finfo(dtype).tiny).log_().neg_().log_().neg_()


def uniform_code_loss(logits: torch.Tensor) -> torch.Tensor:
    """Measure how unevenly clouds use the codes: KL(uniform || mean posterior); 0 if all codes are equally likely.

    Source: ACT (arXiv 2212.08320); the direction of the divergence is that of its released program.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    posterior = wide.softmax(dim=-1).mean(dim=1)  # (batch, codes)
    # With p = 1 / codes in place of the first argument, the divergence is -log(codes) - mean(log posterior).
    return -(posterior.log().mean(dim=-1) + math.log(logits.shape[-1])).mean()
