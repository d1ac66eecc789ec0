#!/usr/bin/env bash
# All workers of a TPU VM slice, from your own machine. This repository lies in ~/ummcsgm
# on each of them, installed with its extra `tpu`; WORKDIR is a path that all of them
# share, such as a Filestore mount.
#   TPU=NAME ZONE=us-central2-b launch/tpu_pod.sh configs/brats19.py WORKDIR [more flags]
# JAX asks the TPU's own metadata for the coordinator and each worker's place.
set -euo pipefail
config=$1 workdir=$2
shift 2
printf -v flags ' %q' --config "$config" --workdir "$workdir" "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command \
  "cd ummcsgm && UMMCSGM_CLUSTER=gcetpu python -m ummcsgm.main$flags"
