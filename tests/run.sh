#!/usr/bin/env bash
# Makes the environment when it is missing, then checks the style and the types, and runs the tests:
#
#   bash tests/run.sh                               everything
#   bash tests/run.sh tests/unit/data -k rows       pytest with these arguments
#   bash tests/run.sh tests/distributed/test_x.py   the same under torchrun, on the ranks that the tests need
#
# Every part runs, whatever failed before. The last line of the output is "N passed, N failed" over all parts; the
# exit status is 0 only when nothing failed and something ran. LONGRL_VENV names another environment than .venv.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
VENV="$(bash tools/environment.sh)" || exit 1
export PATH="$VENV/bin:$PATH"
# Else every process would compile the libraries anew, for ten seconds or more each.
unset PYTHONDONTWRITEBYTECODE
# One thread per process: the ranks of the distributed tests share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TOKENIZERS_PARALLELISM=false WANDB_MODE=offline
REPORTS="$(mktemp -d)"
trap 'rm -rf "$REPORTS"' EXIT

FAILED_PARTS=0
SUMMARY=()

# part NAME COMMAND...: runs it and notes how it ended. With REPORT set, counts come from that junit file.
part() {
  local name="$1" began=$SECONDS status=0 counts=""
  shift
  printf '\n==== %s\n' "$name"
  "$@" </dev/null || status=$?
  if [[ -n "${REPORT:-}" ]]; then
    counts="$(python tests/count_results.py "$REPORT")"
    # pytest exits with 5 when it has selected nothing; the total at the end decides whether that is wrong.
    [[ $status -ne 5 ]] || status=0
  fi
  [[ $status -eq 0 ]] || FAILED_PARTS=$((FAILED_PARTS + 1))
  SUMMARY+=("$(printf '%-24s %-6s %5d s  %s' "$name" "$([[ $status -eq 0 ]] && echo ok || echo FAILED)" \
    $((SECONDS - began)) "$counts")")
}

# tests NAME RANKS PYTEST-ARGUMENTS...: RANKS is 1, or the size of a torchrun launch.
tests() {
  local name="$1" ranks="$2" launcher=(python -m)
  shift 2
  if [[ -d "$1" && -z "$(find "$1" -name 'test_*.py' -print -quit)" ]]; then
    SUMMARY+=("$(printf '%-24s no tests in %s' "$name" "$1")")
    return
  fi
  [[ "$ranks" == 1 ]] || launcher=(torchrun --standalone --nproc-per-node "$ranks" -m)
  local REPORT="$REPORTS/${name//[^a-z0-9]/-}.xml"
  part "$name" "${launcher[@]}" pytest -p no:cacheprovider -q -rfE --durations=5 --durations-min=5 \
    --junitxml="$REPORT" "$@"
}

finish() {
  local totals
  totals="$(python tests/count_results.py "$REPORTS"/*.xml)"
  printf '\n==== summary (%d s)\n' $SECONDS
  printf '%s\n' "${SUMMARY[@]}"
  echo "$totals"
  [[ $FAILED_PARTS -eq 0 && "$totals" != "0 passed"* && "$totals" == *" 0 failed" ]]
  exit
}

if [[ $# -eq 0 ]]; then
  part "ruff check" ruff check .
  part "ruff format" ruff format --check .
  part "mypy" mypy
  tests "unit" 1 tests/unit
  tests "distributed, 2 ranks" 2 tests/distributed --ignore tests/distributed/four_ranks
  tests "distributed, 4 ranks" 4 tests/distributed/four_ranks
  tests "functional" 1 tests/functional
  tests "parity" 1 tests/parity
  finish
fi

# Paths under tests/distributed need torchrun; everything else in the arguments goes to every launch.
OPTIONS=() PLAIN=() TWO_RANKS=() FOUR_RANKS=()
for argument in "$@"; do
  path="${argument%%::*}"
  if [[ "$argument" == -* || ! -e "$path" ]]; then
    OPTIONS+=("$argument")
    continue
  fi
  case "$(realpath --relative-to=. "$path")" in
    tests/distributed/four_ranks*) FOUR_RANKS+=("$argument") ;;
    tests/distributed) TWO_RANKS+=("$argument" --ignore tests/distributed/four_ranks) FOUR_RANKS+=("$path/four_ranks") ;;
    tests/distributed/*) TWO_RANKS+=("$argument") ;;
    *) PLAIN+=("$argument") ;;
  esac
done
if [[ ${#PLAIN[@]} -gt 0 || ${#TWO_RANKS[@]} -eq 0 && ${#FOUR_RANKS[@]} -eq 0 ]]; then
  tests "pytest" 1 "${PLAIN[@]}" "${OPTIONS[@]}"
fi
[[ ${#TWO_RANKS[@]} -eq 0 ]] || tests "distributed, 2 ranks" 2 "${TWO_RANKS[@]}" "${OPTIONS[@]}"
[[ ${#FOUR_RANKS[@]} -eq 0 ]] || tests "distributed, 4 ranks" 4 "${FOUR_RANKS[@]}" "${OPTIONS[@]}"
finish
