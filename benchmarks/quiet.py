"""Whether others use the machine: timings on a shared one wait for quiet moments, and say where there were none.

Nothing but the standard library, for processes of other environments too.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

QUIET = 0.05
"""Share of the processors' time that others may use in a quiet moment."""


class Moment(NamedTuple):
    """When something began: clock, processors' busy time of all and of this process (s)."""

    clock: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.monotonic(), _busy_s(), time.process_time())

    def others(self) -> float:
        """Share of the processors that other processes have used since; 0 where the system does not tell."""
        now = Moment.now()
        busy = now.busy_s - self.busy_s - (now.own_s - self.own_s)
        return max(0.0, busy / ((now.clock - self.clock) * (os.cpu_count() or 1)))


def wait_until_quiet(deadline: float, window_s: float = 0.5) -> None:
    """Sleep until others have been quiet for a window, or until `time.monotonic()` passes the deadline."""
    while time.monotonic() < deadline:
        begin = Moment.now()
        time.sleep(window_s)
        if begin.others() <= QUIET:
            return


def _busy_s() -> float:
    """Seconds of all processors but idle ones, of waiting for a host too."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0
    user, nice, system, _idle, _iowait, *rest = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
