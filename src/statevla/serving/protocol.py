"""The names that server and client share: keys of requests, answers and of the metadata sent on connect.

Two vocabularies are understood. openpi's, of its LIBERO script, and StateVLA's own:

    images/<camera>     uint8 [H, W, 3], one per camera of the metadata
    image_orientation   "upright" (default), "flipped_vertically", "rotated_180" or "mirrored"
    robot_state         float [S]
    robot_state_layout  "joint_gripper" or "ee_gripper"
    instruction         the task in words

With either one a request may carry `mode`: "chunk" (default) is answered by `actions` [H, A], "act" by one `action`
[A] from a queue that the server keeps for the connection. `reset` begins an episode, whose number may be given as
`episode` (it chooses the noise); a request that holds nothing else is answered by `{"reset": True}`.

Answers with actions also carry `surprise` (a number) and `alarm` (a boolean) where there are such, see
`statevla.alarm`. In mode "chunk" the server does not know what the client executed: there is a surprise where the
request says so in `executed_actions`, float [n, A], the actions since the last look.

Every error is one text frame. After it the connection stays open if the request was well formed but unfit, or the
server busy; a malformed message, or a failure inside the server, closes it with code 1011.
"""

from __future__ import annotations

IMAGE_PREFIX = "images/"
IMAGE_ORIENTATION = "image_orientation"
ROBOT_STATE = "robot_state"
ROBOT_STATE_LAYOUT = "robot_state_layout"
INSTRUCTION = "instruction"

MODE = "mode"
CHUNK, ACT = "chunk", "act"
RESET = "reset"
EPISODE = "episode"
EXECUTED_ACTIONS = "executed_actions"

ACTIONS = "actions"
ACTION = "action"
NEEDS_OBSERVATION = "needs_observation"
SERVER_TIMING = "server_timing"
SURPRISE, ALARM = "surprise", "alarm"

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
API_KEY_SCHEME = "Api-Key"
