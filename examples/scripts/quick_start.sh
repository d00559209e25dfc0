#!/usr/bin/env bash
# From a bare machine to a trained model and its page: installs the CPU stack once, then trains a tiny model with MAESTRO.
# Arguments are overrides of the configuration: bash examples/scripts/quick_start.sh --run.max_steps 10
# Relative paths are taken from the repository root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bash examples/scripts/install.sh
exec .venv/bin/maestro train --config examples/configs/quick_start.yaml "$@"
