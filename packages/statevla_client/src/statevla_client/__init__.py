"""A light client of StateVLA's policy server: NumPy, msgpack and websockets, no PyTorch.

`PolicyClient` talks to a server, `protocol` has the names that both sides share, `wire` how messages are coded.
"""

from statevla_client.client import ActionChunk, PolicyClient, PolicyClientError

__all__ = ["ActionChunk", "PolicyClient", "PolicyClientError"]
