#!/usr/bin/env bash
# Chain-of-thought SFT of Qwen2.5-VL (3B or 7B) with MR-SP on one or many nodes.
#
#   bash examples/qwen2_5_vl/sft.sh CHECKPOINT DATA OUT_DIR [flags of longrl train-sft]
#
# CHECKPOINT its Hugging Face folder, as `hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir DIR` makes it
# DATA       JSONL file of rows, or a folder with a train.jsonl (docs/data.md)
# OUT_DIR    checkpoints and logs; started again, the run goes on from its last checkpoint
HERE="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck disable=SC2034
SUBCOMMAND=train-sft RECIPE="$HERE/sft.yaml" MODEL_PARALLEL_ARGS=(--multimodal-sequence-parallel-size 8)
source "$HERE/../launch.sh"
