#!/usr/bin/env bash
# Flow-GRPO of Wan 2.1 T2V 1.3B on one or many nodes.
#
#   bash examples/flow_grpo/wan2_1_1_3b.sh CHECKPOINT DATA OUT_DIR --reward-function FILE.py:NAME [flags of longrl train-rl]
#
# CHECKPOINT OUT_DIR of another run, or the folder of diffusers itself, as `hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --local-dir
#            DIR` makes it
# DATA       JSONL file of prompts, or a folder with a train.jsonl (docs/generation.md)
# OUT_DIR    checkpoints, logs and films of validation; started again, the run goes on from its last checkpoint
HERE="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck disable=SC2034
SUBCOMMAND=train-rl RECIPE="$HERE/wan2_1_1_3b.yaml" MODEL_PARALLEL_ARGS=(--context-parallel-size 2)
source "$HERE/../launch.sh"
