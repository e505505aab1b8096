"""`python -m statevla` is the `statevla` command."""

from statevla.cli import main

main()
