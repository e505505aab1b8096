"""Print what the distributions of this environment take on the disk: `python scripts/installed_sizes.py`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

SHOWN = 10
"""The largest ones have a line each, the others one together."""
OF_EVERY_ENVIRONMENT = {"pip", "setuptools"}


def main() -> None:
    sizes = {found.name: size_of(found) for found in importlib.metadata.distributions()}
    rows = sorted(((size, name) for name, size in sizes.items() if name not in OF_EVERY_ENVIRONMENT), reverse=True)
    largest, others = rows[:SHOWN], rows[SHOWN:]
    for size, name in [*largest, (sum(size for size, _ in others), f"{len(others)} more")]:
        print(f"{size / 1e6:9.1f} MB  {name}")
    print(f"{sum(size for size, _ in rows) / 1e6:9.1f} MB  in all")


def size_of(found: importlib.metadata.Distribution) -> int:
    """Bytes of the files that a distribution has installed."""
    paths = [Path(str(file.locate())) for file in found.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    main()
