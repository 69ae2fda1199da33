#!/usr/bin/env bash
# Chain-of-thought SFT of Qwen2.5-VL (3B or 7B) with MR-SP on one or many nodes.
#
#   bash examples/qwen2_5_vl/sft.sh MODEL_DIR DATA OUT_DIR [flags of longrl train-sft]
#
# MODEL_DIR  its Hugging Face folder, as `hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir DIR` makes it
# DATA       JSONL file of rows, or a folder with a train.jsonl (docs/data.md)
# OUT_DIR    checkpoints and logs; started again, the run goes on from its last checkpoint
#
# One rank runs on each GPU. More than one node: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT on each.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "usage: $0 MODEL_DIR DATA OUT_DIR [flags]" >&2
  exit 2
fi
MODEL_DIR="$1" DATA="$2" OUT_DIR="$3"
shift 3
RECIPE="$(dirname "${BASH_SOURCE[0]}")/sft.yaml"

# Tensor-parallel communication overlaps with computation only on one hardware queue.
export CUDA_DEVICE_MAX_CONNECTIONS=1

DISTRIBUTED_ARGS=(
  --nproc-per-node "${GPUS_PER_NODE:-8}"
  --nnodes "${NNODES:-1}"
  --node-rank "${NODE_RANK:-0}"
  --master-addr "${MASTER_ADDR:-localhost}"
  --master-port "${MASTER_PORT:-6000}"
)

# What is left of the GPUs is data parallel.
MODEL_PARALLEL_ARGS=(
  --multimodal-sequence-parallel-size 8
)

python -m megatron_longrl train-sft "${DISTRIBUTED_ARGS[@]}" --config "$RECIPE" \
  --pretrained-checkpoint "$MODEL_DIR" \
  --train-data-path "$DATA" \
  --save "$OUT_DIR" --load "$OUT_DIR" \
  "${MODEL_PARALLEL_ARGS[@]}" \
  "$@"
