"""A gymnasium environment that notes what it is shown and told: `--env.task=eval_world:EvalWorld`."""

import gymnasium
import numpy as np

from statevla.robots import LIBERO

MAX_STEPS = 6
INSTRUCTION = "pick up the red block"


class EvalWorld(gymnasium.Env):
    """Frames and states at random; success at its last step. The first episode is written to the file `record`."""

    robot = "libero"
    instruction = INSTRUCTION
    max_steps = MAX_STEPS
    action_space = gymnasium.spaces.Box(-1, 1, (LIBERO.action_dim,))

    def __init__(self, record):
        self.record, self.noted = record, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        return self.look(), {}

    def step(self, action):
        self.num_steps += 1
        if len(self.noted) < MAX_STEPS:
            self.noted.append({**self.seen, "action": action})
            np.savez(self.record, **{name: [each[name] for each in self.noted] for name in self.noted[0]})
        success = self.num_steps == MAX_STEPS
        return self.look(), float(success), success, False, {"success": success}

    def look(self):
        frames = {name: self.np_random.integers(0, 256, (48, 48, 3), np.uint8) for name in LIBERO.camera_names}
        self.seen = frames | {field.name: self.np_random.normal(size=field.size) for field in LIBERO.state}
        return self.seen
