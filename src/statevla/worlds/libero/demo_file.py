"""What LIBERO's official files say of themselves, and what it takes beside them to repeat an episode exactly.

Frames are upside down, as in the official files. The layout is that of `statevla.worlds.demo_file`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from statevla.data.libero import BEFORE_ACTION, ORIENTATION_ATTRIBUTE, TIMING_ATTRIBUTE
from statevla.robots import LIBERO, ImageOrientation
from statevla.worlds.backend import versions
from statevla.worlds.demo_file import SETTINGS_ATTRIBUTE
from statevla.worlds.libero.play import PLAY_INSTRUCTION
from statevla.worlds.libero.rendering import CAMERAS
from statevla.worlds.libero.tasks import TaskSpec

FIXTURES_ATTRIBUTE = "fixture_poses"
HIDDEN_ATTRIBUTE = "hidden_state"
GOAL_ATTRIBUTE = "goal"
"""Of an episode whose goal is not its file's task's: predicates, as JSON."""


def file_attributes(task: TaskSpec, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the `data` group of a task's file; `settings` are those of the collection."""
    text = task.bddl_path.read_text()
    problem = text.split("(problem", 1)[1].split(")", 1)[0].strip()
    bddl_file = f"bddl_files/{task.suite}/{task.bddl_path.name}"
    size = settings["image_size"]
    env_kwargs = {
        "robots": ["Panda"],
        "controller": "OSC_POSE",
        "control_freq": int(LIBERO.control_freq_hz),
        "camera_names": list(CAMERAS.values()),
        "camera_heights": size,
        "camera_widths": size,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "use_camera_obs": True,
        "ignore_done": True,
        "reward_shaping": True,
    }
    instruction = PLAY_INSTRUCTION if settings["play"] else task.instruction
    problem_info = {
        "problem_name": problem.lower(),
        "domain_name": "robosuite",
        "language_instruction": instruction,
    }
    env_args = {
        "type": 1,
        "env_name": problem,
        "problem_name": problem.lower(),
        "bddl_file": bddl_file,
        "env_kwargs": env_kwargs,
    }
    return {
        "env_name": problem,
        "problem_info": json.dumps(problem_info),
        "env_args": json.dumps(env_args),
        "bddl_file_name": bddl_file,
        "bddl_file_content": text,
        "macros_image_convention": "opengl",
        "tag": "statevla-scripted-expert",
        ORIENTATION_ATTRIBUTE: ImageOrientation.FLIPPED_VERTICALLY.value,
        TIMING_ATTRIBUTE: BEFORE_ACTION,
        SETTINGS_ATTRIBUTE: json.dumps(dict(settings)),
        "versions": json.dumps(versions("sim")),
    }
