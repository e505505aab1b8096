#!/usr/bin/env bash
# The built wheels, installed into a fresh environment outside the source tree and used from an empty folder, as a
# user of `pip install statevla` has them. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
constraints=()
# The tested set is that of Python 3.11; other versions take what the ranges in pyproject.toml allow.
[ "$("$python" -c 'import sys; print(sys.version_info[:2] == (3, 11))')" = True ] && constraints=(-c "$PWD/constraints.txt")
torch=$(grep '^torch==' constraints.txt)

work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
rm -rf build  # a build takes along what an earlier one left there
"$python" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip --quiet --disable-pip-version-check"
$pip install "$torch"
$pip wheel --no-deps --wheel-dir "$work/wheels" .
wheel=$(echo "$work"/wheels/statevla-*.whl)
test "$(stat -c %s "$wheel")" -lt 100000000 || { echo "$wheel: more than the 100 MB that PyPI takes" >&2; exit 1; }

export STATEVLA_HOME="$work/home"
mkdir "$work/empty"
run() (cd "$work/empty" && "$work/venv/bin/$1" "${@:2}")

echo "== minimal installation"
$pip install "${constraints[@]}" "$wheel"
run statevla doctor
run statevla info --config compact
run statevla info --checkpoint libero_object_compact >/dev/null
status=0
run statevla rollout --checkpoint libero_object_compact --task_suite libero_object 2>"$work/error" || status=$?
cat "$work/error"
test "$status" -eq 2 && test "$(wc -l <"$work/error")" -eq 1 && grep -q "pip install 'statevla\[sim\]'" "$work/error"

echo "== with what acting in LIBERO and serving need"
$pip install "${constraints[@]}" "$wheel[language,sim,serve]"
run statevla doctor
run statevla rollout --checkpoint libero_object_compact --task_suite libero_object \
    --tasks 0 --num_trials 1 --replan_steps 8 --videos 1 --out results
test -s "$work/empty/results/summary.json"

(cd "$work/empty" && exec "$work/venv/bin/statevla" serve --checkpoint libero_object_compact --port 0) 2>"$work/serve" &
server=$!
for _ in $(seq 120); do
    grep -q 'listening on' "$work/serve" && break
    kill -0 "$server" || { cat "$work/serve" >&2; exit 1; }
    sleep 1
done
run python - "$(sed -n 's/.*listening on //p' "$work/serve")" <<'PYTHON'
import sys

import numpy as np

from statevla.serving.client import PolicyClient

with PolicyClient(sys.argv[1]) as policy:
    frame = np.zeros((128, 128, 3), np.uint8)
    observation = {f"images/{camera['name']}": frame for camera in policy.metadata["robot"]["cameras"]}
    observation |= {"robot_state": np.zeros(9, np.float32), "instruction": "pick up the milk"}
    actions = policy.act_chunk(observation).actions
    assert np.isfinite(actions).all(), actions
    print(f"served: a chunk {actions.shape}")
PYTHON
echo "the wheel works"
