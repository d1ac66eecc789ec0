#!/usr/bin/env bash
# N processes on this machine, which train as one: on a CPU that share its cores, on GPUs
# with one GPU each (one process alone takes all of them, which is as fast).
#   launch/local.sh 2 configs/quickstart.py runs/quickstart [more flags]
# Wants bash 5.1. Ctrl-C and SIGTERM are passed on to all. When one fails the others end; the status is
# that of the one that failed first.
set -euo pipefail
set -m # each process in a group of its own: a signal reaches it once, through here
count=$1 config=$2 workdir=$3
shift 3
port=$(python -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
for ((id = 0; id < count; id++)); do
  if ((count > 1)); then export JAX_LOCAL_DEVICE_IDS=$id; fi
  JAX_PROCESS_ID=$id \
    python -m ummcsgm.main --config "$config" --workdir "$workdir" "$@" &
  pids+=($!)
done
status=0
while ((${#pids[@]})); do
  code=0
  wait -n -p ended "${pids[@]}" || code=$?
  [[ -n ${ended-} ]] || continue # a signal was passed on
  for id in "${!pids[@]}"; do [[ ${pids[id]} != "$ended" ]] || unset "pids[id]"; done
  if ((code && !status)); then
    status=$code
    (sleep 45 && kill -KILL "${pids[@]}" 2>/dev/null) & # they end sooner by themselves
    watch=$!
    disown "$watch"
  fi
done
[[ -z ${watch-} ]] || kill -- "-$watch" 2>/dev/null || true
exit "$status"
