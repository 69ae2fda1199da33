#!/usr/bin/env bash
# Chain-of-thought SFT of LongVILA-R1-7B on one or many 8-GPU nodes.
#
#   bash examples/longvila_r1/sft_7b.sh DATA_DIR MODEL_DIR OUT_DIR [flags of longrl train-sft]
#
# DATA_DIR   folder with LongVideo-Reason's sft.jsonl and videos
# MODEL_DIR  LongVILA-7B, its Hugging Face folder
# OUT_DIR    checkpoints and logs; started again, the run goes on from its last checkpoint
#
# More than one node: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT on each, or examples/slurm/train.sbatch.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "usage: $0 DATA_DIR MODEL_DIR OUT_DIR [flags]" >&2
  exit 2
fi
DATA_DIR="$1" MODEL_DIR="$2" OUT_DIR="$3"
shift 3
RECIPE="$(dirname "${BASH_SOURCE[0]}")/sft_7b.yaml"

# Tensor-parallel communication overlaps with computation only on one hardware queue.
export CUDA_DEVICE_MAX_CONNECTIONS=1

DISTRIBUTED_ARGS=(
  --nproc-per-node "${GPUS_PER_NODE:-8}"
  --nnodes "${NNODES:-1}"
  --node-rank "${NODE_RANK:-0}"
  --master-addr "${MASTER_ADDR:-localhost}"
  --master-port "${MASTER_PORT:-6000}"
)

MODEL_ARGS=(
  --pretrained-checkpoint "$MODEL_DIR"
)

TRAINING_ARGS=(
  --micro-batch-size 1
  --global-batch-size 64
  --train-iters 280
  --lr 1e-5
)

# What is left of the GPUs is data parallel.
MODEL_PARALLEL_ARGS=(
  --tensor-model-parallel-size 4
  --sequence-parallel
  --multimodal-sequence-parallel-size 2
  --pipeline-model-parallel-size 1
)

DATA_ARGS=(
  --train-data-path "$DATA_DIR/sft.jsonl"
  --video-frames 256
)

EVAL_AND_LOGGING_ARGS=(
  --save "$OUT_DIR"
  --load "$OUT_DIR"
  --save-interval 50
  --log-interval 1
  --tensorboard-dir "$OUT_DIR/tensorboard"
)

python -m megatron_longrl train-sft "${DISTRIBUTED_ARGS[@]}" --config "$RECIPE" \
  "${MODEL_ARGS[@]}" \
  "${TRAINING_ARGS[@]}" \
  "${MODEL_PARALLEL_ARGS[@]}" \
  "${DATA_ARGS[@]}" \
  "${EVAL_AND_LOGGING_ARGS[@]}" \
  "$@"
