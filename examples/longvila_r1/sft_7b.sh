#!/usr/bin/env bash
# Chain-of-thought SFT of LongVILA-R1-7B with MR-SP on one or many 8-GPU nodes.
#
#   bash examples/longvila_r1/sft_7b.sh CHECKPOINT DATA OUT_DIR [flags of longrl train-sft]
#
# CHECKPOINT LongVILA-7B, its Hugging Face folder
# DATA       LongVideo-Reason's sft.jsonl, its videos beside it
# OUT_DIR    checkpoints and logs; started again, the run goes on from its last checkpoint
HERE="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck disable=SC2034
SUBCOMMAND=train-sft RECIPE="$HERE/sft_7b.yaml"
# shellcheck disable=SC2034
MODEL_PARALLEL_ARGS=(--tensor-model-parallel-size 4 --sequence-parallel --multimodal-sequence-parallel-size 2)
# shellcheck disable=SC2034
MORE_ARGS=(--tensorboard-dir "${3-}/tensorboard")
source "$HERE/../launch.sh"
