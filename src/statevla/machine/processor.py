"""What the operating system says of the processor."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def processor_field(name: str) -> str:
    """A field of the first processor, such as `model name` or `vendor_id`; where there is none, what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = (line.partition(":") for line in lines)
    found = next((value.strip() for key, _, value in fields if key.strip() == name), "")
    return found or platform.processor() or platform.machine()
