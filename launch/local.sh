#!/usr/bin/env bash
# One process on this machine, all of its devices.
#   launch/local.sh configs/quickstart.py runs/quickstart [more flags]
set -euo pipefail
config=$1 workdir=$2
shift 2
exec python -m ummcsgm.main --config "$config" --workdir "$workdir" "$@"
