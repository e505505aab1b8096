"""`python -m statevla.model.mamba`: which scan backend runs on which device and dtype, and why."""

from __future__ import annotations

from statevla.model.mamba.backends import describe_backends


def main() -> None:
    """Print one line per device and dtype."""
    for choice in describe_backends():
        print(f"{choice.device:5} {choice.dtype:9} {choice.backend:10} {choice.reason}")


if __name__ == "__main__":
    main()
