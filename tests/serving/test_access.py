"""Who may talk to a server: API keys and web pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_server import HORIZON, get, open_raw, serving
from websockets.exceptions import InvalidStatus

from statevla.acting.policy import StateVLAPolicy
from statevla.errors import UserError
from statevla.serving.auth import ApiKey, read_api_key
from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError

Observe = Callable[..., Observation]


def test_web_pages_are_refused(policy: StateVLAPolicy) -> None:
    with serving(policy) as server:
        with pytest.raises(InvalidStatus) as refused:
            open_raw(server, origin="http://evil.example")
        assert refused.value.response.status_code == 403


KEY = "correct-horse-battery"


def test_api_key(policy: StateVLAPolicy, observe: Observe) -> None:
    with serving(policy, api_key=KEY) as server:
        for wrong in (None, "wrong-horse-battery", KEY + "x", KEY[:-1]):
            with pytest.raises(PolicyClientError, match="status 401"):
                PolicyClient(port=server.port, api_key=wrong)
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/healthz") == (200, "OK\n")
        with PolicyClient(port=server.port, api_key=KEY) as client:
            assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)
        assert server.metrics.errors == {"unauthorized": 5}
        assert 'statevla_errors_total{kind="unauthorized"} 5' in get(server, "/metrics", KEY)[1]


def test_key_headers() -> None:
    key = ApiKey(KEY)
    assert key.allows(f"Api-Key {KEY}")
    for wrong in (None, "", KEY, f"Bearer {KEY}", f"api-key {KEY}", f"Api-Key {KEY} ", "Api-Key \udcff"):
        assert not key.allows(wrong)


def test_key_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(UserError, match="not readable"):
        read_api_key(file)
    file.write_text(KEY + "\n")
    file.chmod(0o644)
    with pytest.raises(UserError, match="expected permissions 600, got 644"):
        read_api_key(file)
    file.chmod(0o600)
    assert read_api_key(file) == KEY
    for bad in ("short", "two words are not a key", "", "line one is long\nline two is long"):
        file.write_text(bad)
        with pytest.raises(UserError, match="expected one line of 16"):
            read_api_key(file)
