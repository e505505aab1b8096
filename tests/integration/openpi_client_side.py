"""Runs where `openpi-client` is installed: queries a server as openpi's examples do, and stores the answers.

python openpi_client_side.py <libero|droid|aloha> <port> <api key> <inputs.npz> <answers.npz>
"""

import sys

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy

SIZE = 32


def libero(inputs, step):
    """The element that the LIBERO script makes of the simulator's raw frames, which are upside down."""
    image, wrist = (small(raw(inputs["frames"][i][step])[::-1, ::-1]) for i in (0, 1))
    return {
        "observation/image": image,
        "observation/wrist_image": wrist,
        "observation/state": inputs["state"][step],
        "prompt": str(inputs["prompt"]),
    }


def droid(inputs, step):
    outside, wrist = (small(inputs["frames"][i][step]) for i in (0, 1))
    return {
        "observation/exterior_image_1_left": outside,
        "observation/wrist_image_left": wrist,
        "observation/joint_position": inputs["state"][step, :7],
        "observation/gripper_position": inputs["state"][step, 7:],
        "prompt": str(inputs["prompt"]),
    }


def aloha(inputs, step):
    """As both ALOHA environments do, without a prompt."""
    return {
        "state": inputs["state"][step],
        "images": {"cam_high": np.transpose(small(inputs["frames"][0][step]), (2, 0, 1))},
    }


def raw(upright):
    """OpenGL's origin is at the bottom."""
    return upright[::-1]


def small(frame):
    return image_tools.convert_to_uint8(image_tools.resize_with_pad(np.ascontiguousarray(frame), SIZE, SIZE))


def main():
    request_of, port, key, source, target = globals()[sys.argv[1]], int(sys.argv[2]), *sys.argv[3:6]
    inputs = np.load(source)
    count = len(inputs["state"])
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=key)
    metadata = policy.get_server_metadata()
    chunks = np.stack([policy.infer(request_of(inputs, step))["actions"] for step in range(count)])
    # What the server refuses reaches the caller as the RuntimeError that openpi's client makes of a text frame.
    try:
        request = request_of(inputs, 0)
        state = next(key for key in request if "state" in key or "joint" in key)
        policy.infer({**request, state: np.zeros(9)})
        refusal = ""
    except RuntimeError as error:
        refusal = str(error)
    timing = policy.infer({**request_of(inputs, 0), "timestamp": 1.0})["server_timing"]
    # One action per call, as its runtime for robots does it.
    broker = action_chunk_broker.ActionChunkBroker(
        websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=key), metadata["action_horizon"]
    )
    singles = np.stack([broker.infer(request_of(inputs, 0))["actions"] for _ in range(metadata["action_horizon"])])
    told = {"model": metadata["model"], "robot": metadata["robot"]["name"]}
    np.savez(target, chunks=chunks, singles=singles, refusal=refusal, timing=list(timing), **told)


if __name__ == "__main__":
    main()
