#!/usr/bin/env bash
# Headless rendering needs OSMesa (or EGL) and OpenCV needs libGL: install them on Debian and Ubuntu when root,
# else print the one command. Other systems only get the names.
set -euo pipefail

missing=()
ldconfig -p | grep -q 'libOSMesa\.so' || missing+=(libosmesa6)
ldconfig -p | grep -q 'libGL\.so\.1' || missing+=(libgl1)
[ ${#missing[@]} -eq 0 ] && exit 0

if command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
else
    echo "The simulator's rendering needs: ${missing[*]}. On Debian or Ubuntu run:"
    echo "  sudo apt-get update && sudo apt-get install -y ${missing[*]}"
fi
