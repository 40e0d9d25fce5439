"""The policy: a frozen point encoder, and a head that predicts a chunk of actions."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn
from transformers import AutoModel

import hf_any3d  # noqa: F401  registers the encoders with transformers
from lerobot_policy_any3d.configuration_any3d import OBS_POINTS, Any3DConfig


class Any3DPolicy(PreTrainedPolicy):
    """Predict actions from a point cloud and the state of a robot."""

    config_class = Any3DConfig
    name = "any3d"

    def __init__(self, config: Any3DConfig, dataset_stats: dict[str, Any] | None = None, **_: Any):
        super().__init__(config, dataset_stats)
        config.validate_features()
        state, action = config.robot_state_feature, config.action_feature
        assert state is not None and action is not None
        self.config = config
        self.encoder = AutoModel.from_pretrained(config.encoder).eval().requires_grad_(False)
        self.head = nn.Sequential(
            nn.LazyLinear(config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.horizon * action.shape[0]),
        )
        with torch.no_grad():
            # Tells the head the width of the encoder's features.
            self._chunk(torch.rand(1, 4096, config.input_features[OBS_POINTS].shape[-1]), torch.zeros(1, *state.shape))
        self.reset()

    def train(self, mode: bool = True) -> Any3DPolicy:
        """Switch the head to training; the encoder stays in evaluation."""
        super().train(mode)
        self.encoder.eval()
        return self

    def reset(self) -> None:
        """Forget the actions that were predicted."""
        self._waiting: deque[Tensor] = deque()

    def get_optim_params(self) -> Any:
        """Return the parameters of the head."""
        return self.head.parameters()

    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """Return actions `(batch, horizon, action)`."""
        with torch.no_grad():
            return self._chunk(batch[OBS_POINTS], batch[OBS_STATE])

    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """Return the next action `(batch, action)`."""
        if not self._waiting:
            chunk = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._waiting.extend(chunk.unbind(dim=1))
        return self._waiting.popleft()

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Return the mean squared error of the actions; steps after the end of an episode do not count."""
        error = (self._chunk(batch[OBS_POINTS], batch[OBS_STATE]) - batch[ACTION]).square().mean(dim=-1)
        counted = torch.ones_like(error) if (is_pad := batch.get("action_is_pad")) is None else (~is_pad).to(error)
        losses = (error * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)  # (batch,)
        return losses if reduction == "none" else losses.mean(), {"mse": float(losses.detach().mean())}

    def _chunk(self, points: Tensor, state: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(points).pooler_output.float()
        chunk = self.head(torch.cat([features, state], dim=-1))
        return chunk.unflatten(-1, (self.config.horizon, -1))
