#!/usr/bin/env bash
# A tiny Stable Diffusion 3 learns to draw what it is asked for, from nothing, on two CPU cores: render squares with
# captions of which many are wrong, train an autoencoder, pre-train the transformer, then RL with a reward of pixels; and as a
# control, more pre-training for as long as RL took.
#
#   bash examples/flow.sh image [OUT_DIR]      default: runs/flow
#
# ALGORITHM       flow_grpo (default), mix_grpo or diffusion_nft
# SEED            of data, weights, order and sampling (default 1234)
# LONGRL_VENV     the Python environment (default .venv in the checkout; made when missing)
# A run that was interrupted goes on where it stopped when it is started again.
set -euo pipefail

if [[ "${1:-}" != image ]]; then
  echo "usage: bash examples/flow.sh image [OUT_DIR]" >&2
  exit 2
fi
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="$(realpath -m "${2:-$ROOT/runs/flow}")"
ALGORITHM="${ALGORITHM:-flow_grpo}"
SEED="${SEED:-1234}"
BEGAN=$(date +%s)

VENV="$(bash "$ROOT/tools/environment.sh")"
export PATH="$VENV/bin:$PATH"
# Else every process would compile the libraries anew, for ten seconds or more each.
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
RECIPES="$ROOT/examples/flow"
mkdir -p "$OUT"
cd "$OUT"

DISTRIBUTED_ARGS=(--standalone --nproc-per-node 2)
RUN_ARGS=(--diffusers-folder model --seed "$SEED")

step() { printf '\n== %s\n' "$*"; }
summary() { PYTHONPATH="$ROOT" python -m tools.flow_summary --out . "$@"; }

step "render squares with captions, and train an autoencoder on others (seed $SEED)"
[[ -e data/about.json ]] || python -m megatron_longrl.arena.shapes --output data --seed "$SEED"
[[ -e model/model_index.json ]] || python -m megatron_longrl.arena.shapes_folder --output model --seed "$SEED"

step "pre-training"
torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_sft --config "$RECIPES/sft.yaml" "${RUN_ARGS[@]}" \
  --train-data-path data/train.jsonl --save base --load base --log-interval 50

step "RL with $ALGORITHM"
torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_rl --config "$RECIPES/$ALGORITHM.yaml" "${RUN_ARGS[@]}" \
  --train-data-path data/prompts.jsonl --pretrained-checkpoint base --save rl --load rl

step "control: more pre-training on the same captions for the same time"
torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_sft --config "$RECIPES/sft.yaml" "${RUN_ARGS[@]}" \
  --train-data-path data/train.jsonl --pretrained-checkpoint base --save control --load control --log-interval 50 \
  --train-iters "$(summary --print-control-steps)" --lr 2e-4 --lr-decay-style constant --lr-warmup-iters 5

step "eight pictures of each held-out prompt"
for stage in base rl control; do
  if [[ ! -e "pictures/$stage/pictures.jsonl" ]]; then
    rm -rf "pictures/$stage"
    torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.generate --load "$stage" --prompts data/heldout.jsonl \
      --num-samples 8 --micro-batch-size 64 --seed "$SEED" --output "pictures/$stage"
  fi
done

step "summary"
summary --seed "$SEED" --algorithm "$ALGORITHM" --seconds $(($(date +%s) - BEGAN))
