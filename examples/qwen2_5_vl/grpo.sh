#!/usr/bin/env bash
# GRPO of Qwen2.5-VL (3B or 7B) with MR-SP on one or many nodes.
#
#   bash examples/qwen2_5_vl/grpo.sh CHECKPOINT DATA OUT_DIR [flags of longrl train-rl]
#
# CHECKPOINT OUT_DIR of sft.sh, or the Hugging Face folder itself
# DATA       JSONL file of rows, or a folder with a train.jsonl (docs/data.md)
# OUT_DIR    checkpoints and logs; started again, the run goes on from its last checkpoint
HERE="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck disable=SC2034
SUBCOMMAND=train-rl RECIPE="$HERE/grpo.yaml" MODEL_PARALLEL_ARGS=(--multimodal-sequence-parallel-size 8)
source "$HERE/../launch.sh"
