#!/usr/bin/env bash
# Makes the Python environment when it is missing and prints its folder on stdout; everything else goes to stderr.
#
#   venv="$(bash tools/environment.sh)" && export PATH="$venv/bin:$PATH"
#
# LONGRL_VENV    folder of the environment; by default .venv in the checkout
# LONGRL_PYTHON  the Python to make it with; by default the first of python3.11, 3.12, 3.13, python3 that will do
#
# The environment holds exactly requirements/cpu.txt, the CPU build of torchvision where there is one (else the CUDA build
# beside it, for tests), and this checkout in editable mode. A stamp, written last, makes the next start immediate; an
# environment without it is rebuilt, and one that was made from an older lock file is brought up to date. Several starts
# at once wait for the first.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$(realpath -m "${LONGRL_VENV:-$ROOT/.venv}")"
LOCK_FILE="$ROOT/requirements/cpu.txt"
TORCHVISION_FILE="$ROOT/requirements/torchvision-cpu.txt"
TORCHVISION_BESIDE="$VENV/torchvision"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"

PYTHON="$VENV/bin/python"
PACKAGES_STAMP="$VENV/longrl-packages.stamp"
CHECKOUT_STAMP="$VENV/longrl-checkout.stamp"
LOG="$VENV/longrl-install.log"

say() { echo "environment: $*" >&2; }
fail() {
  say "$*"
  exit 1
}

# ---- What the stamps say when nothing is to be done ----

# The lock files decide what is installed; setup.py and the checkout's place decide how the package itself is.
packages_wanted() { cat "$LOCK_FILE" "$TORCHVISION_FILE" | sha256sum | cut -d' ' -f1; }
checkout_wanted() { echo "$(sha256sum <"$ROOT/setup.py" | cut -d' ' -f1) $ROOT"; }

stamped() { [[ "$(cat "$1" 2>/dev/null)" == "$2" ]]; }

# Finds modules without importing them, which would take seconds.
finds() {
  "$PYTHON" -c '
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, sys.argv[1:])))
' "$@" 2>/dev/null
}
holds_packages() { finds pip torch vllm transformers megatron nvidia av; }

is_ready() {
  stamped "$PACKAGES_STAMP" "$(packages_wanted)" && stamped "$CHECKOUT_STAMP" "$(checkout_wanted)" &&
    holds_packages && (cd / && finds megatron_longrl)
}

# ---- Making it ----

# Prints the first Python that can make the environment, or says what each candidate lacks.
find_python() {
  local candidate version lacking="" candidates="${LONGRL_PYTHON:-python3.11 python3.12 python3.13 python3}"
  for candidate in $candidates; do
    # A version manager may put names on the path that do not run, so running them is the test.
    version="$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null)" || continue
    if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      lacking+="; $candidate is $version"
    elif ! "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      lacking+="; $candidate ($version) has no venv module with ensurepip (Debian: apt-get install python${version%.*}-venv)"
    else
      echo "$candidate"
      return
    fi
  done
  [[ -n "$lacking" ]] || lacking="; none of these runs: $candidates"
  fail "no usable Python: version 3.11 or newer with its venv module is needed$lacking. Install one (Debian: apt-get" \
    "install python3.11 python3.11-venv) or name one with LONGRL_PYTHON=/path/to/python3.11"
}

# What the packages need of the machine: vLLM's kernels link to libnuma, and torch compiles a few of its functions.
check_system() {
  "$1" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    fail "libnuma.so.1 is missing, which vLLM needs (Debian: apt-get install libnuma1)"
  command -v "${CXX:-g++}" >/dev/null ||
    fail "no C++ compiler, which torch.compile needs for vLLM (Debian: apt-get install g++; or set CXX)"
  "$1" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null ||
    fail "$1 has no Python.h, which torch.compile needs for vLLM (Debian: apt-get install" \
      "python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev)"
}

# pip, quietly: what it says is kept in a file, of which the end is shown when a step fails.
run_pip() { "$PYTHON" -m pip --disable-pip-version-check --no-input "$@" >>"$LOG" 2>&1; }

fail_with_log() {
  say "$1; the end of $LOG:"
  tail -n 15 "$LOG" >&2 || true
  exit 1
}

make_venv() {
  local base
  base="$(find_python)"
  check_system "$base"
  if [[ -e "$VENV" ]]; then
    # Nothing but an environment is ever removed.
    if [[ ! -f "$VENV/pyvenv.cfg" && -n "$(ls -A "$VENV" 2>/dev/null)" ]]; then
      fail "$VENV exists and is not a Python environment: set LONGRL_VENV to another folder"
    fi
    say "rebuilding $VENV, which is incomplete"
    rm -rf "$VENV"
  fi
  say "making $VENV with $("$base" --version) (one to three minutes, 3 GB)"
  "$base" -m venv "$VENV" >&2 || fail "'$base -m venv $VENV' failed: is the disk full or the folder read-only?"
}

# --no-compile below: Python compiles the modules that are used when they are first imported; all of them would take longer
# than the rest of the installation.
#
# PyTorch's own index is asked only where the CPU build cannot be found otherwise: pip asks an index for every package,
# and one that does not answer costs several retries each time.
install_torch() {
  local pin
  say "installing torch"
  pin="$(grep '^torch==' "$LOCK_FILE")"
  run_pip install --no-deps --no-compile --retries 1 --timeout 30 "$pin" && return
  say "asking $TORCH_CPU_INDEX for $pin"
  run_pip install --no-deps --no-compile --retries 1 --timeout 30 --index-url "$TORCH_CPU_INDEX" "$pin" && return
  fail_with_log "no $pin for $("$PYTHON" --version) on $(uname -sm), neither where pip looks here nor at $TORCH_CPU_INDEX
             (no network, or no wheel for this Python: then set LONGRL_PYTHON=python3.11)"
}

# Good to have (the Qwen-VL processors of transformers use it), and worse than nothing when it does not fit torch. Without
# the CPU build, the one on PyPI goes beside the environment, for tests that start programs with it
# (tests/torchvision_beside): all that is written in Python works.
install_torchvision() {
  rm -rf "$TORCHVISION_BESIDE"
  if run_pip install --no-deps --retries 0 --timeout 10 -r "$TORCHVISION_FILE" ||
    run_pip install --no-deps --retries 0 --timeout 10 --index-url "$TORCH_CPU_INDEX" -r "$TORCHVISION_FILE"; then
    "$PYTHON" -c 'import torchvision' >>"$LOG" 2>&1 && return
    run_pip uninstall --yes torchvision
  fi
  run_pip install --no-deps --no-compile --target "$TORCHVISION_BESIDE" \
    "$(sed -n 's/^\(torchvision==.*\)+cpu$/\1/p' "$TORCHVISION_FILE")" ||
    say "no torchvision: tests that need it will fail"
}

normalised_names() { sed -E 's/^ *//; /^(#|-|$)/d; s/[=@ ].*//' | tr 'A-Z_.' 'a-z--' | sort -u; }

# Packages that the lock file no longer names (a stray CUDA torchvision, for one, breaks vLLM).
remove_strays() {
  local strays
  strays="$(comm -23 \
    <("$PYTHON" -m pip freeze --all --exclude-editable 2>/dev/null | normalised_names) \
    <({ cat "$LOCK_FILE"; echo pip; } | normalised_names))"
  # shellcheck disable=SC2086  # One word per package.
  [[ -z "$strays" ]] || run_pip uninstall --yes $strays
}

install_packages() {
  install_torch
  say "installing $(grep -c == "$LOCK_FILE") packages"
  run_pip install --no-deps --no-compile --retries 3 -r "$LOCK_FILE" ||
    fail_with_log "pip could not install $LOCK_FILE for $("$PYTHON" --version)"
  remove_strays || fail_with_log "pip could not remove packages that $LOCK_FILE does not name"
  install_torchvision
}

# What the project stands on must import together, from any folder.
check_imports() {
  (cd / && "$PYTHON" -c '
import av, nvidia.dali, sentencepiece, torch
import megatron.core
import megatron_longrl
from transformers import AutoTokenizer, Qwen2ForCausalLM, SiglipVisionModel
from vllm import LLM, SamplingParams
') >>"$LOG" 2>&1
}

make_environment() {
  local began=$SECONDS
  if [[ ! -f "$PACKAGES_STAMP" ]] || ! holds_packages; then
    make_venv
  fi
  if ! stamped "$PACKAGES_STAMP" "$(packages_wanted)"; then
    [[ ! -f "$PACKAGES_STAMP" ]] || say "bringing $VENV up to date with $LOCK_FILE"
    rm -f "$PACKAGES_STAMP"
    install_packages
  fi
  rm -f "$CHECKOUT_STAMP"
  say "installing the package from $ROOT and importing everything once"
  run_pip install --no-deps --no-build-isolation --editable "$ROOT" ||
    fail_with_log "pip could not install the package itself from $ROOT"
  check_imports || {
    rm -f "$PACKAGES_STAMP"
    fail_with_log "the environment is installed, but its packages do not import together"
  }
  packages_wanted >"$PACKAGES_STAMP"
  checkout_wanted >"$CHECKOUT_STAMP"
  say "$VENV is ready after $((SECONDS - began)) s"
}

if ! is_ready; then
  mkdir -p "$(dirname "$VENV")" || fail "cannot make $(dirname "$VENV"): set LONGRL_VENV to another folder"
  if command -v flock >/dev/null; then
    exec 9>"$VENV.lock" || fail "cannot write $VENV.lock: set LONGRL_VENV to another folder"
    if ! flock --nonblock 9; then
      say "waiting for another process that is making $VENV"
      flock 9
    fi
  fi
  is_ready || make_environment
fi
echo "$VENV"
