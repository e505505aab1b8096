"""Counters of a running server, as Prometheus reads them (text exposition format 0.0.4).

All of them are touched by the event loop's thread alone, so they need no locks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts of values up to each bound, with their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._sum += value
        place = next((i for i, bound in enumerate(self._bounds) if value <= bound), len(self._bounds))
        self._counts[place] += 1

    def lines(self, name: str) -> list[str]:
        total, lines = 0, []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """What the server counts.

    Attributes:
        requests: answered, by mode (`chunk`, `act`, `reset`).
        errors: by kind (`malformed`, `unfit`, `busy`, `internal`, `unauthorized`, `refused`, `idle`).
        connections: accepted since the start.
        clients: connected now.
        latency: seconds from a whole request to its packed answer.
        batch_size: observations per forward.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.connections = 0
        self.clients = 0
        self.latency = Histogram(LATENCY_BOUNDS_S)
        self.batch_size = Histogram(BATCH_BOUNDS)

    def text(self) -> str:
        """The whole exposition."""
        requests = [f'statevla_requests_total{{mode="{mode}"}} {n}' for mode, n in sorted(self.requests.items())]
        errors = [f'statevla_errors_total{{kind="{kind}"}} {n}' for kind, n in sorted(self.errors.items())]
        families = [
            ("statevla_requests_total", "counter", "Answered requests.", requests),
            ("statevla_errors_total", "counter", "Errors by kind.", errors),
            (
                "statevla_connections_total",
                "counter",
                "Accepted connections.",
                [f"statevla_connections_total {self.connections}"],
            ),
            ("statevla_clients", "gauge", "Connected clients.", [f"statevla_clients {self.clients}"]),
            (
                "statevla_request_seconds",
                "histogram",
                "Seconds from request to answer.",
                self.latency.lines("statevla_request_seconds"),
            ),
            (
                "statevla_batch_size",
                "histogram",
                "Observations per forward.",
                self.batch_size.lines("statevla_batch_size"),
            ),
        ]
        lines: list[str] = []
        for name, kind, text, samples in families:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
        return "\n".join(lines) + "\n"
