#!/usr/bin/env bash
# GRPO of LongVILA-R1-7B with MR-SP on one or many 8-GPU nodes, after sft_7b.sh.
#
#   bash examples/longvila_r1/grpo_7b.sh DATA_DIR SFT_DIR OUT_DIR [flags of longrl train-rl]
#
# DATA_DIR   folder with LongVideo-Reason's train.jsonl and eval.jsonl and their videos
# SFT_DIR    OUT_DIR of sft_7b.sh
# OUT_DIR    checkpoints and logs; started again, the run goes on from its last checkpoint
#
# More than one node: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT on each, or examples/slurm/train.sbatch.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "usage: $0 DATA_DIR SFT_DIR OUT_DIR [flags]" >&2
  exit 2
fi
DATA_DIR="$1" SFT_DIR="$2" OUT_DIR="$3"
shift 3
RECIPE="$(dirname "${BASH_SOURCE[0]}")/grpo_7b.yaml"

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
  --pretrained-checkpoint "$SFT_DIR"
)

TRAINING_ARGS=(
  --grpo-prompts-per-step 128
  --grpo-group-size 8
  --grpo-kl-beta 0.01
  --train-iters 260
  --lr 1e-6
)

# MR-SP: frames are decoded and encoded by all 8 ranks of a replica, sequences are split over 2 x 4 of them. vLLM runs on
# tensor-parallel groups of 4, because the model's 28 heads do not split into 8.
MODEL_PARALLEL_ARGS=(
  --tensor-model-parallel-size 4
  --sequence-parallel
  --multimodal-sequence-parallel-size 2
  --pipeline-model-parallel-size 1
  --rollout-tensor-parallel-size 4
)

DATA_ARGS=(
  --train-data-path "$DATA_DIR/train.jsonl"
  --valid-data-path "$DATA_DIR/eval.jsonl"
  --video-frames 256
)

EVAL_AND_LOGGING_ARGS=(
  --save "$OUT_DIR"
  --load "$OUT_DIR"
  --save-interval 20
  --eval-interval 20
  --eval-samples 200
  --log-interval 1
  --tensorboard-dir "$OUT_DIR/tensorboard"
)

python -m megatron_longrl train-rl "${DISTRIBUTED_ARGS[@]}" --config "$RECIPE" \
  "${MODEL_ARGS[@]}" \
  "${TRAINING_ARGS[@]}" \
  "${MODEL_PARALLEL_ARGS[@]}" \
  "${DATA_ARGS[@]}" \
  "${EVAL_AND_LOGGING_ARGS[@]}" \
  "$@"
