# What the launchers of one recipe share; they source it.
#
#   SUBCOMMAND           of longrl
#   RECIPE               YAML file
#   MODEL_PARALLEL_ARGS  how a replica of the model is spread over ranks; what is left of the GPUs is data parallel
#   MORE_ARGS            further flags, where the recipe has some that depend on the arguments
#
# Arguments: CHECKPOINT DATA OUT_DIR [flags]. One rank runs on each GPU. More than one node: NNODES, NODE_RANK, MASTER_ADDR,
# MASTER_PORT on each, or examples/slurm/train.sbatch.
# shellcheck shell=bash disable=SC2154
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "usage: $0 CHECKPOINT DATA OUT_DIR [flags of longrl $SUBCOMMAND]" >&2
  exit 2
fi
CHECKPOINT="$1" DATA="$2" OUT_DIR="$3"
shift 3

DISTRIBUTED_ARGS=(
  --nproc-per-node "${GPUS_PER_NODE:-8}"
  --nnodes "${NNODES:-1}"
  --node-rank "${NODE_RANK:-0}"
  --master-addr "${MASTER_ADDR:-localhost}"
  --master-port "${MASTER_PORT:-6000}"
)

# In the place of this shell, so that signals of SLURM reach it.
exec python -m megatron_longrl "$SUBCOMMAND" "${DISTRIBUTED_ARGS[@]}" --config "$RECIPE" \
  --pretrained-checkpoint "$CHECKPOINT" \
  --train-data-path "$DATA" \
  --save "$OUT_DIR" --load "$OUT_DIR" \
  "${MODEL_PARALLEL_ARGS[@]}" \
  ${MORE_ARGS[@]+"${MORE_ARGS[@]}"} \
  "$@"
