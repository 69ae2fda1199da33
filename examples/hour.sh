#!/usr/bin/env bash
# One whole RL step (decode, encode, rollouts, log-probabilities, update) on a video of 4,000 frames, 260 thousand
# tokens, over two ranks of MR-SP. What it took stands in OUT_DIR/run/metrics.jsonl.
#
#   bash examples/hour.sh [OUT_DIR] [flags of train_rl]      default: runs/hour
# shellcheck source=examples/start.sh
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"

[[ -e data/train.jsonl ]] ||
  python -m megatron_longrl.arena.cups --output data --clips 3 --sft-clips 1 --heldout-clips 1 --frames 4000 \
    --size 64 --fps 1
[[ -e tokenizer.model ]] ||
  python "$ROOT/tools/train_tokenizer.py" --data data/sft.jsonl --symbols cups --output tokenizer.model

torchrun --standalone --nproc-per-node 2 -m megatron_longrl.train_rl --config "$ROOT/examples/hour/grpo.yaml" \
  --tokenizer-model tokenizer.model --train-data-path data/train.jsonl --save run "${@:2}"
