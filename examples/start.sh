# What the examples that run from nothing share; they source it, with their own arguments.
#
# It sets ROOT (the checkout) and OUT (their first argument, or runs/ and their name), takes the Python environment
# (LONGRL_VENV, default .venv in the checkout; made when missing), and goes to OUT.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="$(realpath -m "${1:-$ROOT/runs/$(basename "$0" .sh)}")"
BEGAN=$(date +%s)

VENV="$(bash "$ROOT/tools/environment.sh")"
export PATH="$VENV/bin:$PATH"
# Else every process would compile the libraries anew, for ten seconds or more each.
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$OUT"
cd "$OUT"

step() { printf '\n== %s\n' "$*"; }
