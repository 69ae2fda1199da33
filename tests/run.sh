#!/usr/bin/env bash
# Makes the environment when it is missing, then checks the style and the types, and runs the tests:
#
#   bash tests/run.sh                               the first tier: every property, once
#   bash tests/run.sh --full                        and every product of layouts, families and kinds of rows
#   bash tests/run.sh tests/unit/data -k rows       pytest with these arguments
#   bash tests/run.sh tests/distributed/test_x.py   the same under torchrun, on the ranks that the tests need
#
# Every part runs, whatever failed before. The output ends with the failing tests, the command that repeats each, and
# "N passed, N failed" over all parts; the exit status is 0 only when nothing failed and something ran. docs/testing.md
# has the rest. LONGRL_VENV names another environment than .venv.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
VENV="$(bash tools/environment.sh)" || exit 1
export PATH="$VENV/bin:$PATH"
# Else every process would compile the libraries anew, for ten seconds or more each.
unset PYTHONDONTWRITEBYTECODE
# One thread per process: the ranks of the distributed tests share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TOKENIZERS_PARALLELISM=false WANDB_MODE=offline
exec python -m tests.runner "$@" </dev/null
