#!/usr/bin/env bash
# Installs the CPU stack once, then runs every check: lint, format, types, import layers, unit and integration tests.
# With arguments only pytest, with these: bash examples/scripts/test.sh tests/unit -k advantage
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bash examples/scripts/install.sh
BIN="$(cd -P .venv/bin && pwd)" # .venv may be a link; see install.sh
(($# == 0)) || exec "$BIN/python" -m pytest "$@"

failed=()
check() {
  local name="$1" output start=$SECONDS
  shift
  if output="$("$@" 2>&1)"; then
    printf 'MAESTRO: %-14s passed in %d s\n' "$name" $((SECONDS - start))
  else
    printf 'MAESTRO: %-14s FAILED\n%s\n' "$name" "$output"
    failed+=("$name")
  fi
}

tests() {
  printf '\nMAESTRO: %s\n' "$1"
  "$BIN/python" -m pytest "$1" || failed+=("$1")
}

check "ruff check" "$BIN/ruff" check .
check "ruff format" "$BIN/ruff" format --check .
check "mypy" "$BIN/mypy"
check "import layers" "$BIN/lint-imports"
tests tests/unit
tests tests/parity
tests tests/integration

if ((${#failed[@]})); then
  printf 'MAESTRO: failed: %s\n' "$(printf '%s, ' "${failed[@]}" | sed 's/, $//')"
  exit 1
fi
