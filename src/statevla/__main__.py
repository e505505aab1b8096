"""`python -m statevla` is the `statevla` command."""

from statevla.commands.table import main

main()
