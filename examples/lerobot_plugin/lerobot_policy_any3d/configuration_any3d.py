"""Settings of the policy."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig

OBS_POINTS = "observation.points"
"""Key of the cloud in a batch, `(batch, points, channels)`, with the channels that the encoder reads."""


@PreTrainedConfig.register_subclass("any3d")
@dataclass
class Any3DConfig(PreTrainedConfig):
    """Settings of the policy `any3d`.

    Args:
        encoder: Directory, hub or published name of a point encoder, which stays frozen.
        horizon: Actions that are predicted at once.
        n_action_steps: How many of them are executed before the next prediction.
        hidden_size: Channels of the head.
        optimizer_lr: Learning rate of the head.
        normalization_mapping: How states and actions are normalized.
    """

    encoder: str = "OpenShape/openshape-pointbert-vitb32-rgb"
    horizon: int = 16
    n_action_steps: int = 8
    hidden_size: int = 256
    optimizer_lr: float = 1e-4
    normalization_mapping: dict[str, Any] = field(
        default_factory=lambda: {"STATE": NormalizationMode.MEAN_STD, "ACTION": NormalizationMode.MEAN_STD}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.horizon:
            raise ValueError(f"n_action_steps={self.n_action_steps}; expected 1 to horizon={self.horizon}")

    def validate_features(self) -> None:
        """Check that there are points, a state and actions."""
        if OBS_POINTS not in (self.input_features or {}):
            raise ValueError(f"input_features has {sorted(self.input_features or {})}; expected {OBS_POINTS!r}")
        if self.robot_state_feature is None or self.action_feature is None:
            raise ValueError("expected 'observation.state' in input_features and 'action' in output_features")

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return the optimizer of the head."""
        return AdamWConfig(lr=self.optimizer_lr)

    def get_scheduler_preset(self) -> None:
        """Return None: the learning rate is constant."""
        return None

    @property
    def observation_delta_indices(self) -> None:
        """None: the policy sees the present alone."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """Steps of the actions that the head learns."""
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """None: there are no rewards."""
        return None
