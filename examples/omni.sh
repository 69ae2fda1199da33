#!/usr/bin/env bash
# A tiny Qwen2.5-Omni learns to see and to hear together, from nothing, on two CPU cores: render films with tones,
# chain-of-thought SFT of its towers and its language model, then GRPO with MR-SP over two ranks and vLLM rollouts on kept
# embeddings of frames and sound; answers to held-out films, the same without their sound, and with their tones moved.
#
#   bash examples/omni.sh [OUT_DIR]      default: runs/omni
#
# SEED            of data, weights, order and sampling (default 1234)
# LONGRL_VENV     the Python environment (default .venv in the checkout; made when missing)
# A run that was interrupted goes on where it stopped when it is started again.
# shellcheck source=examples/start.sh
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"

SEED="${SEED:-1234}"
RECIPES="$ROOT/examples/omni"
DISTRIBUTED_ARGS=(--standalone --nproc-per-node 2)
DATA_ARGS=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model model --seed "$SEED")

step "render films with tones, and make a model of random weights (seed $SEED)"
[[ -e data/moved.jsonl ]] || python -m megatron_longrl.arena.tones --output data --seed "$SEED"
[[ -e model/preprocessor_config.json ]] || python -m megatron_longrl.arena.tones_folder --output model --seed "$SEED"

step "chain-of-thought SFT"
torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_sft --config "$RECIPES/sft.yaml" "${DATA_ARGS[@]}" \
  --train-data-path data/sft.jsonl --pretrained-checkpoint model --save sft --load sft --log-interval 20

step "GRPO"
torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.train_rl --config "$RECIPES/grpo.yaml" "${DATA_ARGS[@]}" \
  --train-data-path data/train.jsonl --pretrained-checkpoint sft --save grpo --load grpo

step "greedy answers to the held-out films; after GRPO also without their sound, and with their tones moved"
evaluate() {
  local stage="$1"
  shift
  torchrun "${DISTRIBUTED_ARGS[@]}" -m megatron_longrl.evaluate --config "$RECIPES/grpo.yaml" "${DATA_ARGS[@]}" \
    --load "$stage" --data "$@" --output "evaluation/$stage.json"
}
evaluate sft data/heldout.jsonl
evaluate grpo data/heldout.jsonl data/silent.jsonl data/moved.jsonl

step "summary"
PYTHONPATH="$ROOT" python -m tools.omni_summary --out . --seed "$SEED" --seconds $(($(date +%s) - BEGAN))
