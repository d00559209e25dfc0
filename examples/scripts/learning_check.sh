#!/usr/bin/env bash
# Does the trainer learn? The rule checker as the only reward, from one cold start, for three seeds that were written down
# here before the first result. Prints held-out accuracy before and after each; the runs are in runs/oracle_seed_<seed>.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
SEEDS=(1 2 3)

bash examples/scripts/install.sh
for seed in "${SEEDS[@]}"; do
  echo "seed $seed"
  .venv/bin/maestro train --config examples/configs/oracle.yaml \
    --run.name "oracle_seed_$seed" --train.seed "$seed" --run.resume never "$@"
done
