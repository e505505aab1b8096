"""StateVLA's own checkpoints where LeRobot takes a policy: `--policy.path=libero_object_compact`.

LeRobot asks a policy's `config.json` for its type before it asks any plugin. So a checkpoint of StateVLA's is written
as a policy once, to `$STATEVLA_HOME/policies_for_lerobot`, and the path that the user gave stands for that folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from lerobot.configs import parser
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION

from lerobot_policy_statevla.robot import in_state
from statevla.checkpoints.checkpoint import load_checkpoint, resolve_checkpoint
from statevla.checkpoints.lerobot_policy import NUM_UPDATES, PREFIX, SWITCHED_AT, PolicySettings
from statevla.checkpoints.version import MODEL_FILE, VERSION_FILE
from statevla.config import bundled_policies, home_dir
from statevla.data.keys import split_key
from statevla.data.lerobot_layout import STATE_KEY, layout_of
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import replacing_folder, sha256, writing
from statevla.robots import RobotSpec

_FORM = 2
"""Of the policies made here; raise it when the same checkpoint would give another one."""
_ASSUMED_SIDE = 256
"""Frames of any size are taken; LeRobot wants to know one."""


def is_own_checkpoint(path: str | Path) -> bool:
    """Whether a path means a checkpoint of StateVLA's own, and not a policy of LeRobot's."""
    folder = Path(path)
    if folder.is_dir():
        return any((part / VERSION_FILE).is_file() for part in (folder, folder / "best", folder / "last"))
    return str(path) in bundled_policies()


def as_policy(path: str | Path) -> Path:
    """The policy's folder of a checkpoint, made where there is none yet.

    Raises:
        UserError: the checkpoint is damaged, or the disk does not take it.
    """
    folder = resolve_checkpoint(path)
    # Every LeRobot writes its own fields into a configuration, and refuses those that it does not know.
    identity = f"{_FORM} {version('lerobot')} {sha256(folder / VERSION_FILE)}"
    target = home_dir() / "policies_for_lerobot" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not (target / MODEL_FILE).exists():
        with only_writer_of(target), writing(target):
            if not (target / MODEL_FILE).exists():
                with replacing_folder(target) as part:
                    write_policy(folder, part)
    return target


def write_policy(checkpoint: str | Path, target: Path) -> None:
    """Write a checkpoint as a policy of LeRobot's into the folder `target`, processors included.

    Raises:
        UserError: the checkpoint is damaged.
    """
    from lerobot_policy_statevla.configuration_statevla import StateVLAConfig
    from lerobot_policy_statevla.modeling_statevla import StateVLAPolicy
    from lerobot_policy_statevla.processor_statevla import make_statevla_pre_post_processors

    loaded = load_checkpoint(checkpoint)
    layout = layout_of(loaded.robot)  # the features that `statevla data convert` writes
    robot = in_state(layout.robot, layout.names(STATE_KEY) if STATE_KEY in layout.columns else None)
    settings = PolicySettings(loaded.config, robot, loaded.statistics, loaded.language)
    config = StateVLAConfig(phase=str(loaded.metrics["phase"]), settings=settings.to_json(), push_to_hub=False)
    sizes = {key: sum(field.size for field in fields) for key, fields in layout.columns.items()}
    config.input_features, config.output_features = features_of(robot, sizes)
    policy = StateVLAPolicy(config)
    tensors = {PREFIX + name: tensor for name, tensor in loaded.model.state_dict().items()}
    own = policy.state_dict()
    policy.load_state_dict({**tensors, **{name: own[name] for name in (NUM_UPDATES, SWITCHED_AT)}})
    policy.num_updates.fill_(int(loaded.metrics.get("step", 0)))
    policy.save_pretrained(target)
    for processor in make_statevla_pre_post_processors(config):
        processor.save_pretrained(target)


def features_of(
    robot: RobotSpec, sizes: Mapping[str, int]
) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """What LeRobot calls a robot's observations and actions; keys of its fields and cameras are LeRobot's features.

    Args:
        sizes: of each feature of the state, in numbers, those that the policy does not see among them.
    """
    inputs = {
        str(camera.key): PolicyFeature(type=FeatureType.VISUAL, shape=(3, _ASSUMED_SIDE, _ASSUMED_SIDE))
        for camera in robot.cameras
    }
    states = dict.fromkeys(split_key(str(field.key))[0] for field in robot.policy_fields)
    inputs |= {key: PolicyFeature(type=FeatureType.STATE, shape=(sizes[key],)) for key in states}
    return inputs, {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(robot.action_dim,))}


def take_paths() -> None:
    """Let `--policy.path` of LeRobot's commands take a checkpoint of StateVLA's own."""
    asked = parser.get_path_arg

    def get_path_arg(field_name: str, args: Sequence[str] | None = None) -> str | None:
        path = asked(field_name, args)
        if field_name == "policy" and path is not None and is_own_checkpoint(path):
            return str(as_policy(path))
        return path

    parser.get_path_arg = get_path_arg
