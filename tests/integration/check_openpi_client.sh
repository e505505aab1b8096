#!/usr/bin/env bash
# openpi's own client, unmodified and from PyPI, against `statevla serve`. It needs NumPy 1, so it gets an environment
# of its own. Exit status 77: the package registry does not offer it.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
venv=${STATEVLA_VENVS:-$HOME/.cache/statevla/venvs}/openpi
requirement='openpi-client==0.1.2'

if ! "$venv/bin/python" -c 'from openpi_client import action_chunk_broker' 2>/dev/null; then
    "$python" -m venv "$venv"
    if ! "$venv/bin/python" -m pip download --quiet --no-deps --dest "$(mktemp -d)" "$requirement" >/dev/null 2>&1; then
        echo "skipped: the package registry does not offer $requirement" >&2
        exit 77
    fi
    # It imports typing_extensions without declaring it.
    "$venv/bin/python" -m pip install --quiet "$requirement" typing_extensions
fi
exec "$python" tests/integration/openpi_check.py "$venv/bin/python"
