"""Runs where `openpi-client` is installed: queries a server as openpi's LIBERO script does, and stores the answers.

python openpi_client_side.py <port> <api key> <inputs.npz> <answers.npz>
"""

import sys

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy

SIZE = 32


def request_of(inputs, step):
    """The element that the LIBERO script makes of the simulator's raw frames."""
    frames = [np.ascontiguousarray(inputs[name][step][::-1, ::-1]) for name in ("agentview", "eye_in_hand")]
    image, wrist = (image_tools.convert_to_uint8(image_tools.resize_with_pad(f, SIZE, SIZE)) for f in frames)
    return {
        "observation/image": image,
        "observation/wrist_image": wrist,
        "observation/state": np.concatenate(
            (inputs["state"][step, :3], inputs["state"][step, 3:6], inputs["state"][step, 6:])
        ),
        "prompt": str(inputs["prompt"]),
    }


def main():
    port, key, source, target = int(sys.argv[1]), *sys.argv[2:5]
    inputs = np.load(source)
    count = len(inputs["state"])
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=key)
    metadata = policy.get_server_metadata()
    chunks = np.stack([policy.infer(request_of(inputs, step))["actions"] for step in range(count)])
    # What the server refuses reaches the caller as the RuntimeError that openpi's client makes of a text frame.
    try:
        policy.infer({**request_of(inputs, 0), "observation/state": np.zeros(9)})
        refusal = ""
    except RuntimeError as error:
        refusal = str(error)
    timing = policy.infer(request_of(inputs, 0))["server_timing"]
    # One action per call, as its runtime for robots does it.
    broker = action_chunk_broker.ActionChunkBroker(
        websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=key), metadata["action_horizon"]
    )
    singles = np.stack([broker.infer(request_of(inputs, 0))["actions"] for _ in range(metadata["action_horizon"])])
    told = {"model": metadata["model"], "robot": metadata["robot"]["name"]}
    np.savez(target, chunks=chunks, singles=singles, refusal=refusal, timing=list(timing), **told)


if __name__ == "__main__":
    main()
