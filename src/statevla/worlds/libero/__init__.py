"""The LIBERO simulator: environment, scripted expert, demonstrations, replay and evaluation.

Nothing outside this package imports LIBERO, robosuite or MuJoCo. Importing this package is cheap: `env.py` loads the
simulator, after `backend.prepare` has chosen how to render.
"""

from statevla.worlds.backend import users_choice

users_choice()  # some modules import MuJoCo alone, which raises what is no UserError
