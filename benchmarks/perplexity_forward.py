"""What `perplexity.shared_forward` saves: one forward for response and reference answer against two.

    python benchmarks/perplexity_forward.py [--model FOLDER_OR_NAME] [--batch 2] [--repeats 3] [--json]

Random weights, rows of equal length, no gradients: the features of a rollout. On a CPU the seconds are CPU time, which
other processes on the machine change little; on CUDA wall time. The least of the repeats counts, and the two ways take
turns. Memory is measured on CUDA only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from openrlhf_maestro.rewards import ReferenceBranch, TeacherForced
from openrlhf_maestro.workers.forward import token_forward

# Tokens of the prompt, of the response (half of it reasoning), of the reference answer.
LENGTHS = ((64, 64, 16), (128, 256, 32), (256, 512, 64), (512, 512, 256), (256, 1024, 64), (256, 3072, 64))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="take the architecture from this folder or name; default a small Qwen3")
    parser.add_argument("--attn", default="sdpa", help="attention kernel of the two forwards; the one always has sdpa")
    parser.add_argument("--batch", type=int, default=2, help="rows a micro-batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON line a row instead of a table")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    one = random_model(options.model, "sdpa", device)
    two = one if options.attn == "sdpa" else random_model(options.model, options.attn, device)
    rows = [measure(one, two, lengths, options.batch, options.repeats, device) for lengths in LENGTHS]
    if options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        Console().print(table(rows, one, device, options))


def random_model(name: str | None, kernel: str, device: torch.device) -> Any:
    """The architecture with random weights; fp32 on a CPU, bf16 on CUDA."""
    config = AutoConfig.from_pretrained(name) if name else small_config()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernel)
    return model.to(device).eval()


def small_config() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )


def measure(
    one: Any, two: Any, lengths: tuple[int, int, int], batch: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Seconds, and MiB above the model's own, of both ways at one (prompt, response, reference) length."""
    prompt, response, reference = lengths
    sequences = torch.randint(one.config.vocab_size, (batch, prompt + response), device=device)
    attention_mask = torch.ones_like(sequences)
    action_mask = torch.ones_like(sequences)[:, 1:]
    action_mask[:, : prompt - 1] = 0
    answer = torch.randint(one.config.vocab_size, (reference,)).tolist()
    branch = ReferenceBranch.of([TeacherForced(prompt + response // 2, answer, 0)] * batch)
    settings: dict[str, Any] = {"temperature": 0.8, "chunk_tokens": 1024, "with_entropy": True, "with_hidden": True}

    def two_forwards() -> None:
        token_forward(two, sequences, attention_mask, action_mask, **settings)
        own = (tensor.to(device) for tensor in branch.rows(sequences.cpu()))
        token_forward(two, *own, temperature=1.0, chunk_tokens=1024)

    def one_forward() -> None:
        token_forward(one, sequences, attention_mask, action_mask, **settings, branch=branch.to(device))

    two_forwards()
    one_forward()
    seconds: dict[str, list[float]] = {"two": [], "one": []}
    for _ in range(repeats):
        seconds["two"].append(timed(two_forwards, device))
        seconds["one"].append(timed(one_forward, device))
    two_s, one_s = min(seconds["two"]), min(seconds["one"])
    row: dict[str, Any] = {"prompt": prompt, "response": response, "reference": reference}
    row |= {"two_forwards_s": two_s, "one_forward_s": one_s, "saved": 1 - one_s / two_s}
    if device.type == "cuda":
        row |= {"two_forwards_mib": peak_mib(two_forwards), "one_forward_mib": peak_mib(one_forward)}
    return row


def timed(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        start_s = time.process_time()
        work()
        return time.process_time() - start_s
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start_s


def peak_mib(work: Callable[[], None]) -> float:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def table(rows: list[dict[str, Any]], model: Any, device: torch.device, options: argparse.Namespace) -> Table:
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    title = f"{machine}; {size:.1f}M parameters, {model.dtype}, {options.batch} rows, two forwards: {options.attn}"
    drawn = Table(*rows[0], title=title)
    for row in rows:
        cells = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in row.items()}
        drawn.add_row(*(cells | {"saved": f"{row['saved']:+.0%}"}).values())
    return drawn


if __name__ == "__main__":
    main()
