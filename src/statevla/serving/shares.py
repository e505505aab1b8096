"""Fair shares: what a connection costs the server beside its forwards, and how long it waits for that.

Forwards are fair already: a connection has one request at a time in them. What else a request costs is up to the
client: every text that the server has not met runs the sentence encoder, and a picture of 15 MB takes longer to read
and to resize than a small one takes to be answered. So every connection has an account of such seconds. Ordinary
pictures cost nothing; what does cost is paid from a credit, and a connection that is below zero is not listened to
until it has been paid back, slower the more clients there are. Nobody waits who is alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection

FREE_BYTES = 2 * 2**20
"""Of a message: two cameras of 640 x 480 and a state."""
SECONDS_PER_BYTE = 1e-8
"""To receive, decode and resize what is beyond that; measured on one core."""
CREDIT_S = 0.2
"""What a connection may cost at once: about ten new instructions."""
_RECHECK_S = 1.0
"""Clients come and go, and with them the shares."""


class Account:
    """One connection's seconds: `credit_s` is below zero where it has to wait."""

    def __init__(self) -> None:
        self.credit_s = CREDIT_S
        self._updated = time.monotonic()

    def refill(self, rate: float) -> None:
        """Add what has been earned at `rate` seconds a second since the last time; all that fits at an infinite one."""
        now = time.monotonic()
        earned = rate * (now - self._updated) if math.isfinite(rate) else CREDIT_S - self.credit_s
        self.credit_s, self._updated = min(CREDIT_S, self.credit_s + earned), now


class Shares:
    """The accounts of all connections.

    Args:
        heavy_share: seconds of heavy work per second, for all clients together.
        num_clients: how many are connected now.
    """

    def __init__(self, heavy_share: float, num_clients: Callable[[], int]) -> None:
        self._heavy_share, self._num_clients = heavy_share, num_clients
        self._left_behind: dict[str, list[Account]] = {}

    def open(self, address: str) -> Account:
        """An account for a connection; connecting anew from the same address renews no credit."""
        left = self._left_behind.get(address)
        return left.pop(left.index(min(left, key=lambda account: account.credit_s))) if left else Account()

    def close(self, address: str, account: Account) -> None:
        """Keep the account of a connection that has ended for as long as it is not full."""
        self._left_behind.setdefault(address, []).append(account)
        for known, accounts in list(self._left_behind.items()):
            for each in accounts:
                each.refill(self._rate(self._num_clients()))
            kept = [each for each in accounts if each.credit_s < CREDIT_S]
            if kept:
                self._left_behind[known] = kept
            else:
                del self._left_behind[known]

    def charge_message(self, account: Account, num_bytes: int) -> None:
        """Take from the account what a message of this size costs."""
        account.credit_s -= SECONDS_PER_BYTE * max(0, num_bytes - FREE_BYTES)

    async def settle(self, account: Account, connection: ServerConnection) -> None:
        """Wait until the account of an open connection is not below zero, or the connection has ended."""
        while (owed_s := self._owed_s(account, self._num_clients() - 1)) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.wait_closed(), min(owed_s, _RECHECK_S))
                return

    async def settle_address(self, address: str) -> None:
        """Wait until no connection that an address has closed owes anything."""

        def owed_s() -> float:
            left, num_others = self._left_behind.get(address, []), self._num_clients()
            return max((self._owed_s(account, num_others) for account in left), default=0.0)

        while (longest_s := owed_s()) > 0:
            await asyncio.sleep(min(longest_s, _RECHECK_S))

    def _owed_s(self, account: Account, num_others: int) -> float:
        rate = self._rate(num_others)
        account.refill(rate)
        return max(0.0, -account.credit_s / rate)

    def _rate(self, num_others: int) -> float:
        return self._heavy_share / num_others if num_others > 0 else math.inf
