#!/usr/bin/env bash
# GRPO of LongVILA-R1-7B with MR-SP on one or many 8-GPU nodes.
#
#   bash examples/longvila_r1/grpo_7b.sh CHECKPOINT DATA OUT_DIR [flags of longrl train-rl]
#
# CHECKPOINT OUT_DIR of sft_7b.sh
# DATA       folder with LongVideo-Reason's train.jsonl and eval.jsonl and their videos
# OUT_DIR    checkpoints and logs; started again, the run goes on from its last checkpoint
HERE="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck disable=SC2034
SUBCOMMAND=train-rl RECIPE="$HERE/grpo_7b.yaml"
# Frames are decoded and encoded by all 8 ranks of a replica, sequences are split over 2 x 4 of them. vLLM runs on
# tensor-parallel groups of 4, because the model's 28 heads do not split into 8.
# shellcheck disable=SC2034
MODEL_PARALLEL_ARGS=(
  --tensor-model-parallel-size 4 --sequence-parallel --multimodal-sequence-parallel-size 2
  --rollout-tensor-parallel-size 4
)
# shellcheck disable=SC2034
MORE_ARGS=(
  --valid-data-path "${2-}/eval.jsonl" --eval-interval 20 --eval-samples 200
  --tensorboard-dir "${3-}/tensorboard"
)
source "$HERE/../launch.sh"
