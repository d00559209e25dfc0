#!/usr/bin/env bash
# From raw EmoBench rows to a judged table, on a CPU with tiny models: prepare, sft, train, evaluate, compare, report.
# A language model that vLLM serves on this machine is the judge. Its verdicts mean nothing (it is not trained), every
# other part is what a real study uses. In the middle of the judging the evaluation is killed, and goes on where it was.
#
#   bash examples/scripts/emobench_chain.sh FOLDER [WORK]
#
# FOLDER holds EA.jsonl and EU.jsonl as EmoBench publishes them (https://github.com/Sahandfer/EmoBench, MIT); everything is
# written to WORK, by default runs/emobench_chain. A second run goes on with what is there.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"

fail() {
  printf '\n%s\n' "$@" >&2
  exit 1
}

(($# == 1 || $# == 2)) || fail "usage: bash examples/scripts/emobench_chain.sh FOLDER [WORK]"
SOURCE="$(realpath -e "$1")" || fail "There is no folder $1 with EA.jsonl and EU.jsonl."
mkdir -p "${2:-$ROOT/runs/emobench_chain}"
WORK="$(realpath -e "${2:-$ROOT/runs/emobench_chain}")"
cd "$ROOT"
bash examples/scripts/install.sh
MAESTRO=.venv/bin/maestro
ASSETS="${MAESTRO_ASSETS:-assets}"
ITEMS=10 # rows that are evaluated
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

say() { printf '\n== %s\n' "$*"; }

say "prepare: raw rows to prompts and reference answers"
[[ -f "$WORK/data/card.yaml" ]] || "$MAESTRO" prepare --dataset emobench --source "$SOURCE" --out "$WORK/data"

say "judge: vLLM serves a model of this machine"
# One port for every run in WORK: votes belong to the judge at an address, and those of another are not used again.
[[ -s "$WORK/judge.port" ]] ||
  .venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' >"$WORK/judge.port"
JUDGE_PORT="$(<"$WORK/judge.port")"
JUDGE_MODEL="$(.venv/bin/python -c 'import sys; from openrlhf_maestro.data.assets import ensure_asset; print(ensure_asset("policy_base", sys.argv[1]))' "$ASSETS")"
# Without chunked prefill: a seeded request of several chunks ends vLLM 0.29 on a CPU.
TORCHDYNAMO_DISABLE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 \
  .venv/bin/python -m vllm.entrypoints.openai.api_server --model "$JUDGE_MODEL" --served-model-name judge \
  --host 127.0.0.1 --port "$JUDGE_PORT" --dtype float32 --enforce-eager \
  --no-enable-chunked-prefill --max-num-batched-tokens 8192 >"$WORK/judge.log" 2>&1 &
JUDGE_PID=$!
trap 'kill "$JUDGE_PID" 2>/dev/null && wait "$JUDGE_PID" 2>/dev/null || true' EXIT
JUDGE=(
  --judge.model judge --judge.base_url "http://127.0.0.1:$JUDGE_PORT/v1" --judge.api_key_env null
  --judge.extra_body '{structured_outputs: {choice: ["True", "False"]}}' # an untrained model says neither by itself
)

say "sft: the reference answers, in the format"
[[ -f "$WORK/sft/config.json" ]] || "$MAESTRO" sft --run.assets_dir "$ASSETS" \
  --model.model_name_or_path bundled:policy_base --data.dataset "$WORK/data" --data.output_key reference \
  --data.input_template plain --data.output_template examples/templates/answer.txt --data.max_len 2048 \
  --train.batch_size 8 --train.micro_batch_size 4 --train.max_epochs 2 --adam.lr 5e-3 \
  --ckpt.output_dir "$WORK/sft" >"$WORK/sft.log" 2>&1 || fail "sft failed; its output is in $WORK/sft.log"

until .venv/bin/python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$JUDGE_PORT/health', timeout=5)" 2>/dev/null; do
  kill -0 "$JUDGE_PID" 2>/dev/null || fail "The judge did not start; its output is in $WORK/judge.log"
  sleep 1
done

say "train: MAESTRO, evaluated by the judge every second step"
[[ -d "$WORK/run/model" ]] || "$MAESTRO" train --config examples/configs/emobench_cpu.yaml --run.dir "$WORK/run" \
  --run.assets_dir "$ASSETS" --actor.model_name_or_path "$WORK/sft" --data.prompt_dataset "$WORK/data" \
  --eval.dataset "$WORK/data" "${JUDGE[@]/#--judge./--eval.judge.}"

evaluate() { # NAME MODEL TEMPLATE [OPTION ...]
  "$MAESTRO" evaluate --run.name "$1" --output_dir "$WORK/evaluations/$1" --run.assets_dir "$ASSETS" --model "$2" \
    --data "$WORK/data" --data.input_template "$3" --data.max_samples "$ITEMS" --generation.max_new_tokens 96 "${JUDGE[@]}" "${@:4}"
}
votes() { wc -l 2>/dev/null <"$WORK/evaluations/$1/votes.jsonl" || echo 0; }

say "evaluate: base and chain of thought before training, the fine-tuned and the trained model"
evaluate base bundled:policy_base plain
evaluate cot bundled:policy_base reasoning
evaluate sft "$WORK/sft" plain

say "evaluate: the trained model, killed in the middle of the judging"
if [[ ! -f "$WORK/evaluations/maestro/results.jsonl" ]]; then
  # One call at a time, or this judge would be done before it can be killed.
  evaluate maestro "$WORK/run/model" plain --judge.concurrency 1 >"$WORK/killed.log" 2>&1 &
  KILLED=$!
  until (($(votes maestro) >= 5)); do
    kill -0 "$KILLED" 2>/dev/null || fail "The evaluation ended before it could be killed; its output is in $WORK/killed.log"
    sleep 0.02
  done
  pkill -KILL -P "$KILLED" || true
  kill -KILL "$KILLED" 2>/dev/null || true
  wait "$KILLED" 2>/dev/null || true
  echo "killed after $(votes maestro) votes"
fi
evaluate maestro "$WORK/run/model" plain

say "compare: every evaluation with the base model"
"$MAESTRO" evaluate --compare "$WORK/evaluations/base" "$WORK/evaluations/cot" "$WORK/evaluations/sft" \
  "$WORK/evaluations/maestro" --output "$WORK/comparison"

say "report"
"$MAESTRO" report "$WORK/run" --evaluations "$WORK"/evaluations/{base,cot,sft,maestro} --comparison "$WORK/comparison"
