"""A LeRobot policy that sees point clouds through a frozen encoder of `hf_any3d`; LeRobot finds it by its name."""

from lerobot_policy_any3d.configuration_any3d import Any3DConfig
from lerobot_policy_any3d.modeling_any3d import Any3DPolicy
from lerobot_policy_any3d.processor_any3d import make_any3d_pre_post_processors

__all__ = ["Any3DConfig", "Any3DPolicy", "make_any3d_pre_post_processors"]
