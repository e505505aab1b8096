"""The names that server and client share: keys of requests, answers and of the metadata sent on connect.

The metadata's `robot` is the declaration of the policy's robot, as StateVLA's docs/robots.md has it: what it reports,
what its actions are, and how often it acts.

Two vocabularies are understood. StateVLA's own:

    images/<camera>      uint8 [H, W, 3], one per camera of the robot
    image_orientation    "upright" (default), "flipped_vertically", "rotated_180" or "mirrored"
    robot_state/<field>  float [n], one per state field of the robot; or instead
    robot_state          float [S], all of them in declared order; or those of one of the robot's `state_ways` alone
    instruction          the task in words

and openpi's, of its examples for LIBERO, DROID and ALOHA, for policies whose robot has that state and those actions;
what else those requests hold is ignored. `instruction` and `prompt` may be missing where the server has a default.

With either one a request may carry `mode`: "chunk" (default) is answered by `actions` [H, A], "act" by one `action`
[A] from a queue that the server keeps for the connection, in the robot's units. `reset` begins an episode, whose number
may be given as `episode` (it chooses the noise); a request that holds nothing else is answered by `{"reset": True}`.

Answers with actions also carry `surprise` (a number) and `alarm` (a boolean) where there are such: a surprise from the
second look of an episode on, and an alarm from the first surprise on, where the policy is calibrated. In mode "chunk"
the server does not know what the client executed: there is a surprise only where the request says so in
`executed_actions`, float [n, A], the actions since the last look.

Every error is one text frame. After it the connection stays open if the request was well formed but unfit, or the
server busy; a malformed message, or a failure inside the server, closes it with code 1011.
"""

from __future__ import annotations

IMAGE_PREFIX = "images/"
IMAGE_ORIENTATION = "image_orientation"
ROBOT_STATE = "robot_state"
STATE_PREFIX = "robot_state/"
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


def bare_host(host: str) -> str:
    """A host without the brackets that IPv6 addresses have in URLs."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def url(host: str, port: int) -> str:
    """`ws://host:port`; IPv6 addresses, given with brackets or without, stand in brackets."""
    bare = bare_host(host)
    return f"ws://[{bare}]:{port}" if ":" in bare else f"ws://{bare}:{port}"
