#!/usr/bin/env bash
# Usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]; NNODES, NODE_RANK, MASTER_ADDR
# and PORT as in OpenMMLab.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2; exit 2; }
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" "$here/test.py" "$1" "$2" --launcher pytorch "${@:4}"
