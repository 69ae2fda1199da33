#!/usr/bin/env bash
# LongVILA-R1's recipe in miniature, from nothing, on two CPU cores: render videos, chain-of-thought SFT, then GRPO with
# MR-SP over two ranks and vLLM rollouts on cached video embeddings.
#
#   bash examples/quickstart.sh [OUT_DIR]      default: runs/quickstart
#
# SEED            of data, weights, order and sampling (default 1234)
# CONTROL=1       also continue SFT for as long as RL took, to see what RL itself brought
# LONGRL_VENV     the Python environment (default .venv in the checkout; made when missing)
# A run that was interrupted goes on where it stopped when it is started again.
# shellcheck source=examples/start.sh
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"

SEED="${SEED:-1234}"
RECIPES="$ROOT/examples/quickstart"
DISTRIBUTED_ARGS=(--standalone --nproc-per-node 2)
DATA_ARGS=(--tokenizer-model tokenizer.model --seed "$SEED")

step "render moving-cups clips (seed $SEED)"
if [[ ! -e data/heldout.jsonl ]]; then
  python -m megatron_longrl.arena.cups --output data --clips 5012 --sft-clips 3000 --heldout-clips 512 \
    --slip 0.1 --seed "$SEED"
fi
[[ -e tokenizer.model ]] ||
  python "$ROOT/tools/train_tokenizer.py" --data data/sft.jsonl --symbols cups --output tokenizer.model

step "chain-of-thought SFT"
torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_sft --config "$RECIPES/sft.yaml" "${DATA_ARGS[@]}" \
  --train-data-path data/sft.jsonl --save sft --load sft --log-interval 20

step "GRPO"
torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_rl --config "$RECIPES/grpo.yaml" "${DATA_ARGS[@]}" \
  --train-data-path data/train.jsonl --valid-data-path data/heldout.jsonl \
  --pretrained-checkpoint sft --save grpo --load grpo

STAGES=(sft grpo)
if [[ "${CONTROL:-0}" == 1 ]]; then
  step "control: more SFT on the same data for the same time"
  STEPS="$(PYTHONPATH="$ROOT" python -m tools.quickstart_summary --out . --print-control-steps)"
  torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_sft --config "$RECIPES/sft.yaml" "${DATA_ARGS[@]}" \
    --train-data-path data/sft.jsonl --pretrained-checkpoint sft --save control --load control --log-interval 20 \
    --train-iters "$STEPS" --lr 1e-4 --lr-decay-style constant --lr-warmup-iters 5
  STAGES+=(control)
fi

step "answers to the held-out clips, greedy and sampled"
for stage in "${STAGES[@]}"; do
  for temperature in 0 1; do
    torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.evaluate --config "$RECIPES/grpo.yaml" "${DATA_ARGS[@]}" \
      --load "$stage" --data data/heldout.jsonl --eval-temperature "$temperature" \
      --output "evaluation/$stage-temperature-$temperature.json"
  done
done

step "summary"
PYTHONPATH="$ROOT" python -m tools.quickstart_summary --out . --seed "$SEED" --seconds $(($(date +%s) - BEGAN))
