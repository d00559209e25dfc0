#!/usr/bin/env bash
# Makes .venv in the repository root and installs the CPU stack into it. A second run finds it up to date and ends at once;
# an interrupted run is taken up again by the next one.
#
#   bash examples/scripts/install.sh                                from any directory
#   PYTHON=/usr/bin/python3.12 bash examples/scripts/install.sh     with this interpreter (3.10-3.12)
set -euo pipefail
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
VENV="$ROOT/.venv"
# torch and vLLM compile and preload libraries at run time by paths that must not contain spaces: under a checkout whose
# path does, .venv is a link to a folder elsewhere.
if [[ "$ROOT" == *[[:space:]]* ]]; then
  VENV="${XDG_CACHE_HOME:-$HOME/.cache}/openrlhf_maestro/venv-$(cksum <<<"$ROOT" | cut -d ' ' -f 1)"
fi
LOG="$VENV/install.log"
STAMP="$VENV/installed.sha256"
OPS="$VENV/torch_extensions" # `maestro` sets TORCH_EXTENSIONS_DIR to this folder
TORCH="$(sed -n 's/^torch==//p' "$ROOT/requirements-cpu.txt")+cpu"
TORCH_INDEX="https://download.pytorch.org/whl/cpu"
DISK_GB=6

fail() {
  printf '\n%s\n' "$@" >&2
  exit 1
}

# The compiled ops use every instruction of the CPU they are compiled on (-march=native).
cpu() {
  uname -m
  grep -m 1 '^flags' /proc/cpuinfo || true
}

fingerprint() {
  {
    cat "$ROOT"/requirements-cpu*.txt "$ROOT/setup.py"
    "$VENV/bin/python" -VV
    cpu
  } | sha256sum
}

# True where .venv works, was made at this path (scripts inside hold it) and has the Python that was asked for.
venv_usable() {
  "$VENV/bin/python" -c "import pip" 2>/dev/null &&
    head -n 2 "$VENV/bin/pip" 2>/dev/null | grep -qF "$VENV/bin/python" &&
    [[ -z "${PYTHON:-}" || "$("$VENV/bin/python" -VV)" == "$("$PYTHON" -VV 2>/dev/null)" ]]
}

is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

# Prints the real path of PYTHON, or else of the first supported interpreter on PATH; nothing where there is none.
find_python() {
  local candidate candidates=(python3 python3.11 python3.12 python3.10)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if is_supported "$candidate"; then
      "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
      return
    fi
  done
}

# Prints one line for everything that this machine lacks.
list_missing() {
  local python="$1" asked="${PYTHON:-python3}" version="absent" free_gb
  [[ "$(uname -sm)" == "Linux x86_64" ]] ||
    echo "Linux on x86_64 (OpenRLHF has wheels for nothing else; this is $(uname -sm))"
  if [[ -z "$python" ]]; then
    if command -v "$asked" >/dev/null; then version="$("$asked" --version 2>&1 | head -n 1)"; fi
    echo "Python 3.10, 3.11 or 3.12 ($asked is $version); if it is elsewhere, set PYTHON=/path/to/python3.11"
  else
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      echo "the venv module of $python (Debian, Ubuntu: apt-get install python3-venv)"
    "$python" -c 'import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
      echo "the headers of $python, Python.h (Debian, Ubuntu: apt-get install python3-dev)"
    "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
      echo "the library libnuma.so.1, which vLLM needs (Debian, Ubuntu: apt-get install libnuma1)"
  fi
  command -v "${CXX:-c++}" >/dev/null && command -v "${CXX:-g++}" >/dev/null ||
    echo "a C++ compiler, ${CXX:-g++} (Debian, Ubuntu: apt-get install g++)"
  [[ "$VENV" != *[[:space:]]* ]] ||
    echo "a folder without spaces in its path for the environment: set XDG_CACHE_HOME to one, or move the checkout"
  free_gb="$(df -Pk "${VENV%/*}" | awk 'NR == 2 { print int($4 / 1048576) }')"
  ((free_gb >= DISK_GB)) || echo "$DISK_GB GB of free disk space at ${VENV%/*} (there are $free_gb)"
}

step() {
  local title="$1" start=$SECONDS status=0
  shift
  printf '  %-38s' "$title"
  set +e # inside `if` or `||` bash would not stop the step at its first failing command
  (set -e && "$@") >>"$LOG" 2>&1
  status=$?
  set -e
  if ((status)); then
    printf 'failed after %d s\n\n' $((SECONDS - start))
    tail -n 20 "$LOG" | cut -c 1-300
    fail "Installation stopped at: $title. The whole log: $LOG" "Run the same command again to take it up from here."
  fi
  printf '%4d s\n' $((SECONDS - start))
}

pip_install() {
  "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --no-compile "$@"
}

link_venv() {
  [[ "$ROOT/.venv" -ef "$VENV" ]] || { rm -rf "$ROOT/.venv" && ln -s "$VENV" "$ROOT/.venv"; }
}

make_venv() {
  find "$VENV" -mindepth 1 -maxdepth 1 ! -name "${LOG##*/}" -exec rm -rf '{}' +
  "$PYTHON_FOUND" -m venv "$VENV"
}

# The pip of an old Python builds DeepSpeed in a way that newer ones have given up.
renew_pip() {
  pip_install "pip>=24" "$(grep '^setuptools==' "$ROOT/requirements-cpu.txt")" wheel
}

install_torch() {
  pip_install "torch==$TORCH" && return
  echo "Not there; trying $TORCH_INDEX"
  pip_install "torch==$TORCH" --extra-index-url "$TORCH_INDEX" && return
  echo "PyTorch's CPU build, torch==$TORCH, is neither in pip's configured index nor reachable at $TORCH_INDEX."
  echo "Without it pip would install several GB of CUDA libraries, so nothing more is installed. Off line: put its wheel"
  echo "for this Python into a folder and set PIP_FIND_LINKS to that folder."
  return 1
}

# A package whose installation was killed half-way has metadata but no INSTALLER file, and pip would take it for complete.
install_stack() {
  find "$VENV"/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' ! -exec test -e '{}/INSTALLER' \; \
    -exec rm -rf '{}' + -print
  pip_install -r "$ROOT/requirements-cpu.txt"
}

install_upstream() {
  pip_install --no-deps -r "$ROOT/requirements-cpu-nodeps.txt"
}

install_project() {
  pip_install --no-build-isolation -e "${ROOT}[dev]"
}

# On all cores, in half the time that pip takes for it on two. Not checked: some files are for other versions of Python.
compile_python() {
  "$VENV/bin/python" -m compileall -q -j 0 "$VENV"/lib/python3*/site-packages || true
}

# What a ZeRO run on a CPU makes DeepSpeed compile at first use: the shared-memory collectives of init_distributed, and
# Adam. (Adam for optimiser offload is another op, which a run without offload does not load.) Ninja sees what is done.
build_ops() {
  mkdir -p "$OPS"
  cpu | cmp -s - "$OPS/cpu" || rm -rf "${OPS:?}"/*
  rm -f "$OPS"/*/lock # left by a killed build; the next one would wait for ever
  PATH="$VENV/bin:$PATH" TORCH_EXTENSIONS_DIR="$OPS" DS_ACCELERATOR=cpu "$VENV/bin/python" -c '
from deepspeed.ops.op_builder.cpu import FusedAdamBuilder, ShareMemCommBuilder

for builder in (ShareMemCommBuilder, FusedAdamBuilder):
    builder().load()
'
  cpu >"$OPS/cpu"
}

up_to_date() {
  [[ -f "$STAMP" && "$ROOT/.venv" -ef "$VENV" ]] && venv_usable && fingerprint | cmp -s - "$STAMP"
}

if up_to_date; then
  echo "MAESTRO: environment is up to date ($VENV)"
  exit 0
fi

exec 9<"$ROOT"
flock 9 # a second installation waits for the first and then finds its work done
if up_to_date; then
  echo "MAESTRO: environment is up to date ($VENV)"
  exit 0
fi

if venv_usable; then PYTHON_FOUND="$VENV/bin/python"; else PYTHON_FOUND="$(find_python)"; fi
mkdir -p "${VENV%/*}"
MISSING="$(list_missing "$PYTHON_FOUND")"
[[ -z "$MISSING" ]] || fail "MAESTRO cannot be installed here. Missing:" "  - ${MISSING//$'\n'/$'\n'  - }"

rm -f "$STAMP"
mkdir -p "$VENV"
link_venv
date >"$LOG"
echo "MAESTRO: installing the CPU stack into $VENV (some minutes, the first time only)"
venv_usable || step "virtual environment ($("$PYTHON_FOUND" -V))" make_venv
step "pip, setuptools, wheel" renew_pip
step "PyTorch $TORCH" install_torch
step "Ray, DeepSpeed, Transformers, ..." install_stack
step "OpenRLHF, vLLM" install_upstream
step "this project" install_project
step "compiling Python files" compile_python
step "compiling DeepSpeed's CPU ops" build_ops
fingerprint >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
echo "MAESTRO: ready after $SECONDS s. The command is .venv/bin/maestro"
