"""robosuite's human demonstrations, with pictures: recorded states shown again in the environment they came from.

Importing this package is cheap: `replay.replay_demonstrations` loads the simulator when it is called.
"""

from statevla.worlds.backend import before_mujoco

before_mujoco()
