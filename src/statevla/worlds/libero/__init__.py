"""The LIBERO simulator: environment, scripted expert, demonstrations, replay and evaluation.

Nothing outside this package imports LIBERO, robosuite or MuJoCo. Importing this package is cheap: `env.py` loads the
simulator, after `backend.prepare` has chosen how to render.
"""

from statevla.worlds.backend import before_mujoco

before_mujoco()
