"""StateVLA as a policy of LeRobot, and its worlds as environments. Importing this registers both as `statevla`."""

from lerobot_policy_statevla.configuration_environment import StateVLAEnvConfig
from lerobot_policy_statevla.configuration_statevla import StateVLAConfig
from lerobot_policy_statevla.modeling_statevla import StateVLAPolicy, export_checkpoint
from lerobot_policy_statevla.own_checkpoints import take_paths
from lerobot_policy_statevla.processor_statevla import make_statevla_pre_post_processors

__all__ = [
    "StateVLAConfig",
    "StateVLAEnvConfig",
    "StateVLAPolicy",
    "export_checkpoint",
    "make_statevla_pre_post_processors",
]

take_paths()
