#!/usr/bin/env bash
# Accuracy against the number of frames, with and without reasoning, on long clips of moving cups: a tiny model learns both ways
# of answering, then answers every question in every way. Each video is decoded and encoded once.
#
#   bash examples/frames.sh [OUT_DIR]          default: runs/frames
#
# FRAMES          numbers of frames to compare (default "8 16 32 64 128 256", of clips with as many frames as the largest)
# CLIPS, HELDOUT  clips to learn from, and to answer (default 1500 and 256)
# STEPS           steps of SFT (default 500)
# RANKS           ranks of MR-SP (default 2)
# SEED            of data, weights and order (default 1234)
# LONGRL_VENV     the Python environment (default .venv in the checkout; made when missing)
# shellcheck source=examples/start.sh
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"

read -ra FRAMES <<<"${FRAMES:-8 16 32 64 128 256}"
CLIPS="${CLIPS:-1500}" HELDOUT="${HELDOUT:-256}" STEPS="${STEPS:-500}" RANKS="${RANKS:-2}" SEED="${SEED:-1234}"
MOST="$(printf '%s\n' "${FRAMES[@]}" | sort -n | tail -1)"
RECIPES="$ROOT/examples/quickstart"
LAYOUT=(--nproc-per-node "$RANKS" --context-parallel-size "$RANKS")

step "render clips of $MOST frames (seed $SEED)"
[[ -e data/heldout.jsonl ]] ||
  python -m megatron_longrl.arena.cups --output data --clips "$((CLIPS + HELDOUT))" --sft-clips "$CLIPS" --heldout-clips "$HELDOUT" \
    --frames "$MOST" --reveal "$((MOST / 8))" --hasty 0 --slip 0 --seed "$SEED" --workers "$RANKS"
python "$ROOT/examples/frames/two_modes.py" --data data/sft.jsonl --output data/modes.jsonl
[[ -e tokenizer.model ]] ||
  python "$ROOT/tools/train_tokenizer.py" --data data/modes.jsonl --symbols cups --output tokenizer.model

step "SFT with and without reasoning"
longrl train-sft --config "$RECIPES/sft.yaml" "${LAYOUT[@]}" --tokenizer-model tokenizer.model --seed "$SEED" \
  --train-data-path data/modes.jsonl --seq-length 1024 --train-iters "$STEPS" --lr-warmup-iters "$((STEPS / 10))" --save sft --load sft --log-interval 20

step "answers with ${FRAMES[*]} frames, with and without reasoning"
longrl evaluate --config "$RECIPES/grpo.yaml" "${LAYOUT[@]}" --tokenizer-model tokenizer.model --load sft \
  --data data/heldout.jsonl --seq-length 1024 --rollout-max-tokens 40 \
  --video-frames "${FRAMES[@]}" --reasoning on off --output frames.json
echo "$OUT/frames.json has every figure and answer, $OUT/frames.png the curves"
