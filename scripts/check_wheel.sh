#!/usr/bin/env bash
# The built wheels, installed into fresh environments outside the source tree and used from an empty folder, as a
# user of `pip install statevla` has them. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
constraints=()
# The tested set is that of Python 3.11; other versions take what the ranges in pyproject.toml allow.
[ "$("$python" -c 'import sys; print(sys.version_info[:2] == (3, 11))')" = True ] && constraints=(-c "$PWD/constraints.txt")
torch=$(grep '^torch==' constraints.txt)
sizes=$PWD/scripts/installed_sizes.py

work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/empty"
export STATEVLA_HOME="$work/home"
export PYTHONFAULTHANDLER=1  # a process that dies by a signal says where it was, also while it ends
run() (cd "$work/empty" && "$work/$1/bin/$2" "${@:3}")  # in an environment, from the empty folder
environment() { "$python" -m venv "$work/$1"; }
install() { "$work/$1/bin/python" -m pip --quiet --disable-pip-version-check install "${constraints[@]}" "${@:2}"; }

echo "== wheels"
environment venv
export STATEVLA_REPOSITORY=${STATEVLA_REPOSITORY:-https://example.org/statevla}  # a release says its own
rm -rf build packages/*/build  # a build takes along what an earlier one left there
for project in . packages/*/; do
    "$work/venv/bin/python" -m pip --quiet --disable-pip-version-check wheel --no-deps --wheel-dir "$work/wheels" "$project"
done
(cd "$work/wheels" && ls -l)
"$work/venv/bin/python" scripts/check_metadata.py "$STATEVLA_REPOSITORY" "$work"/wheels/*.whl
wheel=$(echo "$work"/wheels/statevla-*.whl)
client=$(echo "$work"/wheels/statevla_client-*.whl)
test "$(stat -c %s "$wheel")" -lt 100000000 || { echo "$wheel: more than the 100 MB that PyPI takes" >&2; exit 1; }

echo "== the client alone"
environment robot
install robot "$client"
run robot python "$sizes"
run robot python -c 'import sys, statevla_client; assert not {"torch", "statevla"} & set(sys.modules)'

echo "== minimal installation"
install venv "$torch"
install venv "$wheel"
run venv python "$sizes"
run venv statevla doctor
run venv statevla info --config compact
run venv statevla info --checkpoint libero_object_compact >/dev/null
refused() {  # an extra, and the command that says in one line that it is missing
    local status=0
    run venv statevla "${@:2}" 2>"$work/error" || status=$?
    cat "$work/error"
    test "$status" -eq 2 && test "$(wc -l <"$work/error")" -eq 1 && grep -q "pip install 'statevla\[$1\]'" "$work/error"
}
refused sim rollout --checkpoint libero_object_compact --task_suite libero_object
refused serve serve --checkpoint libero_object_compact

echo "== quickstart, small"
install venv "$wheel[language,sim,plots]"
run venv python "$sizes"
run venv statevla doctor
data=$STATEVLA_HOME/datasets/libero_object
steps() { echo "--training.phase$1.max_steps 3 --training.phase$1.batch_size 4 --training.phase$1.warmup_steps 1"; }
small="--data.path $data --model.image_size 64 --model.encoder_depth 1"
run venv statevla collect --suite libero_object --out "$data/official" --tasks 0 --demos 3 --image-size 64
run venv statevla collect --suite libero_object --out "$data/starts" --tasks 0 --demos 3 --image-size 64 --wide --reaches start
run venv statevla data inspect "$data/official"
run venv statevla replay "$data/official" --demos 1
# shellcheck disable=SC2046,SC2086 # words
run venv statevla train --config compact --phase 1 $(steps 1) $small
run venv statevla probe --checkpoint checkpoints/phase1_temporal_jepa
# shellcheck disable=SC2046,SC2086
run venv statevla train --config compact --phase 2 $(steps 2) $small \
    --phase1_checkpoint checkpoints/phase1_temporal_jepa/checkpoint_best.pt
run venv statevla eval --checkpoint checkpoints/phase2_flow_matching/checkpoint_best.pt --max-samples 20
run venv statevla calibrate --checkpoint checkpoints/phase2_flow_matching --alpha 0.6
run venv statevla rollout --checkpoint checkpoints/phase2_flow_matching/checkpoint_best.pt \
    --task_suite libero_object --tasks 0 --num_trials 1 --replan_steps 8
run venv statevla rollout --checkpoint libero_object_compact --task_suite libero_object \
    --tasks 0 --num_trials 1 --replan_steps 8 --videos 1 --out results
test -s "$work/empty/results/summary.json"
run venv statevla report checkpoints results "$STATEVLA_HOME/rollouts" --out report.html
test -s "$work/empty/report.html"

echo "== a server, and a robot that has the client alone"
install venv "$client" "$wheel[serve]"
(cd "$work/empty" && exec "$work/venv/bin/statevla" serve --checkpoint libero_object_compact --port 0) 2>"$work/serve" &
server=$!
for _ in $(seq 120); do
    grep -q 'listening on' "$work/serve" && break
    kill -0 "$server" || { cat "$work/serve" >&2; exit 1; }
    sleep 1
done
run robot python - "$(sed -n 's/.*listening on //p' "$work/serve")" <<'PYTHON'
import sys

import numpy as np

from statevla_client import PolicyClient

with PolicyClient(sys.argv[1]) as policy:
    frame = np.zeros((128, 128, 3), np.uint8)
    observation = {f"images/{camera['name']}": frame for camera in policy.metadata["robot"]["cameras"]}
    observation |= {"robot_state": np.zeros(9, np.float32), "instruction": "pick up the milk"}
    actions = policy.act_chunk(observation).actions
    assert np.isfinite(actions).all(), actions
    print(f"served: a chunk {actions.shape}")
PYTHON
echo "the wheels work"
