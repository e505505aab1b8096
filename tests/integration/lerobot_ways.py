"""Runs where LeRobot and the plugin are installed: a policy acts on the state in the way it is sent.

python lerobot_run.py lerobot_ways.py <policy of LeRobot's> <instruction> [suite]

The policy, of the robot `libero_either` or `libero_hand`, is asked as it is and as a checkpoint of StateVLA's. With a
suite, LeRobot's own environment `libero` sends the state; that takes the simulator.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.utils.constants import OBS_STATE, OBS_STR
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_both_ways import loaded

from statevla.acting.policy import load_policy
from statevla.checkpoints.checkpoint import resolve_checkpoint
from statevla.errors import UserError
from statevla.robots import LIBERO, LIBERO_EITHER, LIBERO_HAND
from statevla.transforms import from_upright
from statevla.types import Observation

NUM_STEPS = 4
BESIDE = {"joint_positions": "observation.states.joint_state", "finger_positions": "observation.states.gripper_state"}
"""What `statevla data convert` writes beside the hand's pose."""


def main():
    register_third_party_plugins()
    from lerobot_policy_statevla.own_checkpoints import as_policy

    policy, instruction, *suites = sys.argv[1:]
    check_ways(Sides(as_policy(resolve_checkpoint(policy)), policy), instruction)
    sides = Sides(Path(policy), policy)
    check_ways(sides, instruction)
    for suite in suites:
        check_environment(sides, suite)


class Sides:
    """A policy as LeRobot's commands have it, `theirs`, and as StateVLA's, `own`; `other` is one more of these."""

    def __init__(self, folder, checkpoint):
        self.theirs, self._before, self._after = loaded(folder)
        self.own, self.other = (load_policy(checkpoint, device="cpu") for _ in range(2))
        self._episode = 0

    def begin(self):
        """An episode of all of them, with the same noise."""
        self._episode += 1
        self.theirs.reset()
        self.own.reset(self._episode)
        self.other.reset(self._episode)

    def answer(self, batch):
        return self._after(self.theirs.select_action(self._before(batch)))[0].numpy()


def check_ways(sides, instruction):
    """Flat in `observation.state`, or by the features of the data: joints, the hand's pose, or both."""
    rng, robot = np.random.default_rng(0), sides.theirs.settings.robot
    upright = {camera.name: rng.integers(0, 256, (48, 48, 3), np.uint8) for camera in robot.cameras}
    frames = {camera.key: from_upright(upright[camera.name], camera.orientation) for camera in robot.cameras}
    seen = {key: torch.from_numpy(frame.copy()).permute(2, 0, 1) / 255 for key, frame in frames.items()}
    seen["task"] = instruction
    whole = LIBERO_EITHER.named_state(rng.normal(size=15).astype(np.float32), "test")
    tensors = {name: torch.from_numpy(values) for name, values in whole.items()}
    beside = {key: tensors[name] for name, key in BESIDE.items()}
    flat = {by.name: torch.cat([tensors[f.name] for f in by.policy_fields]) for by in (LIBERO, LIBERO_HAND)}
    hand = {OBS_STATE: flat["libero_hand"]}
    ways = {LIBERO: ({OBS_STATE: flat["libero"]}, beside), LIBERO_HAND: (hand,), LIBERO_EITHER: ({**hand, **beside},)}
    if robot.state_ways:
        sizes = (
            "15 state numbers (joint",
            "9 state numbers (joint",
            "8 state numbers (hand",
            "shape [1, {}]; send these",
        )
    else:
        ways = {LIBERO_HAND: ways[LIBERO_HAND]}
        sizes = (
            "'observation.state': expected 8 numbers, with state field 'hand_position' (x, y, z)",
            "got {}; send what",
        )
    answers = set()
    for by, batches in ways.items():
        fields = {field.name: whole[field.name] for field in by.policy_fields}
        for batch in batches:
            sides.begin()
            expected = sides.own.act(Observation(upright, fields, instruction))
            np.testing.assert_array_equal(sides.answer({**seen, **batch}), expected)
        sides.other.reset(0)
        answers.add(tuple(sides.other.act(Observation(upright, fields, instruction))))
    assert len(answers) == len(ways), answers  # the way matters
    for size in (7, 10, 14):
        sides.begin()
        said = refusal(sides, {**seen, OBS_STATE: torch.zeros(size)})
        assert all(part.format(size) in said for part in sizes), said
        assert "\n" not in said


def refusal(sides, batch):
    try:
        sides.answer(batch)
    except UserError as error:
        return str(error)
    return "nothing"


def check_environment(sides, suite):
    """LeRobot's own `libero`: its eight numbers are the hand's pose, and that is what is acted on, at every step."""
    from lerobot.envs.configs import LiberoEnv
    from lerobot.envs.factory import make_env, make_env_pre_post_processors
    from lerobot.envs.utils import preprocess_observation
    from robosuite.utils.transform_utils import quat2axisangle

    config = LiberoEnv(task=suite, task_ids=[0], init_states=False)
    (env,) = make_env(config, n_envs=1)[suite].values()
    prepare, _ = make_env_pre_post_processors(env_cfg=config, policy_cfg=sides.theirs.config)
    apart = 0.0
    sent, _ = env.reset(seed=[0])
    for _ in range(NUM_STEPS):
        (task,) = env.call("task_description")
        batch = prepare({**preprocess_observation(sent), "task": [task]})
        states = {key: tuple(value.shape) for key, value in batch.items() if key.startswith(f"{OBS_STR}.s")}
        assert states == {OBS_STATE: (1, 8)}, states
        sides.begin()
        action = sides.answer(batch)
        # What the simulator shows, read without LeRobot: its frames are upside down.
        arm = {part: {name: values[0] for name, values in of.items()} for part, of in sent["robot_state"].items()}
        images = {
            name: sent["pixels"][key][0][::-1] for name, key in (("agentview", "image"), ("eye_in_hand", "image2"))
        }
        fingers = {"finger_positions": arm["gripper"]["qpos"].astype(np.float32)}
        turn = quat2axisangle(arm["eef"]["quat"].copy())
        hand = {"hand_position": arm["eef"]["pos"].astype(np.float32), "hand_orientation": turn.astype(np.float32)}
        np.testing.assert_allclose(action, sides.own.act(Observation(images, hand | fingers, task)), atol=1e-4)
        elsewhere = hand | {"hand_position": hand["hand_position"] + 0.2}
        apart = max(apart, np.abs(action - sides.other.act(Observation(images, elsewhere | fingers, task))).max())
        sent, *_ = env.step(action[None])
    assert apart > 1e-3, apart
    env.close()


if __name__ == "__main__":
    main()
