"""Weights of any pair: `pair_weights` and `maestro weights` against a plain forward of one pair at a time.

Tolerance 1e-6 in fp32: padding changes the order of summation, and a weight is a number below 1.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openrlhf_maestro.cli.main import main
from openrlhf_maestro.conductor import Conductor, PairWeights, check_pairs, pair_weights
from openrlhf_maestro.errors import ConfigError, DataError

HIDDEN, DEPTH, NAMES = 16, 4, ["format", "perplexity", "length"]
EOS, MAX_TOKENS = "<|im_end|>", 256
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' -%}{{ raise_exception('no tools') }}{%- endif -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
# The prompt, the response, whether it was cut, and the texts of both that the policy sees, written out.
ASKED, ANSWER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
ROWS: list[tuple[Any, str, bool, str, str]] = [
    ("Name a colour.", "Red", False, f"{ASKED}Name a colour.{ANSWER}", "Red<|im_end|>"),
    (
        "Why is the sky blue?",
        "Air scatters short waves",
        True,
        f"{ASKED}Why is the sky blue?{ANSWER}",
        "Air scatters short waves",
    ),
    (CHAT, "4", False, f"<|im_start|>system\nBe brief.<|im_end|>\n{ASKED}2 + 2?{ANSWER}", "4<|im_end|>"),
    ("Say nothing.", "", False, f"{ASKED}Say nothing.{ANSWER}", "<|im_end|>"),
    ("Écris!", "Voilà, ça y est.", False, f"{ASKED}Écris!{ANSWER}", "Voilà, ça y est.<|im_end|>"),
]
PAIRS = [row[:3] for row in ROWS]


def save_model(folder: Path, *, template: str | None = TEMPLATE, hidden: int = HIDDEN) -> str:
    """A tiny random Qwen3 and a tokenizer of one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", EOS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, chat_template=template)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_conductor(folder: Path, **arguments: Any) -> str:
    """Away from its uniform start."""
    conductor: Any = Conductor(HIDDEN, NAMES, **arguments)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in conductor.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    conductor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def conductor(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_conductor(tmp_path_factory.mktemp("conductor"))


@torch.no_grad()
def by_definition(conductor: str, model: str, index: int = -1, mean: bool = False) -> torch.Tensor:
    """(5, 3): bytes and special tokens spelt out here, one pair a forward, every hidden state kept."""
    special = {"<|im_start|>": 256, EOS: 257}
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def ids(text: str) -> list[int]:
        found: list[int] = []
        for part in filter(None, re.split(r"(<\|\w+\|>)", text)):
            found += [special[part]] if part in special else [letters[x] for x in spell.pre_tokenize_str(part)[0][0]]
        return found

    network, head = Qwen3ForCausalLM.from_pretrained(model), Conductor.from_pretrained(conductor)
    rows = []
    for *_, prompt_text, response_text in ROWS:
        prompt, response = ids(prompt_text), ids(response_text)
        states = network(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[index][0]
        rows.append(head.probs(states[len(prompt) :].mean(0) if mean else states[-1]))
    return torch.stack(rows)


def as_tensor(found: list[dict[str, float]]) -> torch.Tensor:
    assert all(list(row) == NAMES for row in found)
    return torch.tensor([list(row.values()) for row in found])


def assert_close(found: list[dict[str, float]], expected: torch.Tensor) -> None:
    torch.testing.assert_close(as_tensor(found), expected, rtol=0, atol=1e-6)


# ── the weights ──


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_agree_with_a_plain_forward_whatever_the_batch(conductor: str, model: str, batch_size: int) -> None:
    expected = by_definition(conductor, model)
    assert (expected[0] - expected).abs().amax(1)[1:].min() > 1e-3  # the pairs can be told apart
    assert_close(pair_weights(conductor=conductor, model=model, pairs=PAIRS, batch_size=batch_size), expected)


def test_the_order_of_the_pairs_changes_nothing_else(conductor: str, model: str) -> None:
    """More pairs than are sorted together at a time (32 batches)."""
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)) % len(PAIRS)
    found = pair_weights(conductor=conductor, model=model, pairs=[PAIRS[at] for at in order], batch_size=3)
    assert_close(found, by_definition(conductor, model)[order])


@pytest.mark.parametrize(
    ("layer", "pooling", "index"), [("first", "last_token", 1), ("middle", "mean", 2), ("last", "mean", -1)]
)
def test_the_conductor_says_where_it_reads(model: str, tmp_path: Path, layer: str, pooling: str, index: int) -> None:
    conductor = save_conductor(tmp_path, context_layer=layer, context_pooling=pooling)
    expected = by_definition(conductor, model, index, mean=pooling == "mean")
    assert_close(pair_weights(conductor=conductor, model=model, pairs=PAIRS, batch_size=2), expected)


def test_a_saved_conductor_gives_the_same_bits(conductor: str, model: str, tmp_path: Path) -> None:
    again: Any = Conductor.from_pretrained(conductor)
    again.save_pretrained(tmp_path)
    one, two = (pair_weights(conductor=folder, model=model, pairs=PAIRS) for folder in (conductor, tmp_path))
    assert one == two


def test_a_conductor_saved_before_there_were_layers_reads_the_last(conductor: str, model: str, tmp_path: Path) -> None:
    save_conductor(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["context_layer"], config["context_pooling"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_close(pair_weights(conductor=tmp_path, model=model, pairs=PAIRS), by_definition(conductor, model))


def test_without_the_template_a_text_stands_as_it_is(conductor: str, tmp_path: Path, model: str) -> None:
    """The same text as the template would make of it, and a model that has none."""
    plain = save_model(tmp_path, template=None)
    rows = [(rendered, response, cut) for _, response, cut, rendered, _ in ROWS]
    found = pair_weights(conductor=conductor, model=plain, pairs=rows, apply_chat_template=False)
    assert_close(found, by_definition(conductor, model))


def test_a_stop_token_in_the_text_is_not_put_there_twice(conductor: str, model: str) -> None:
    both = pair_weights(conductor=conductor, model=model, pairs=[("a", "b"), ("a", f"b{EOS}")])
    assert_close(both[:1], as_tensor(both[1:]))


def test_bf16(conductor: str, model: str) -> None:
    """Eight bits of precision, through a head of weights about 0.2: a few hundredths."""
    found = pair_weights(conductor=conductor, model=model, pairs=PAIRS, dtype="bf16")
    torch.testing.assert_close(as_tensor(found), by_definition(conductor, model), rtol=0, atol=0.1)
    assert as_tensor(found).sum(1).sub(1).abs().max() < 1e-6


# ── what is refused ──


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("a", None), "row 2: `response` is a NoneType, not a text"),
        ((" ", "b"), "row 2: `prompt` is empty"),
        ((3, "b"), "row 2: `prompt` is neither a text nor chat messages"),
        (([], "b"), "row 2: `prompt` is neither"),
        (([{"role": "user"}], "b"), "row 2: `prompt` is neither"),
        (("a", "b", "perhaps"), "row 2: `truncated` is 'perhaps', neither true nor false"),
        (("a", "b", [1]), r"row 2: `truncated` is \[1\]"),
        (("a", "", True), "row 2: the response is empty and truncated"),
        (("a", "b" * MAX_TOKENS), f"row 2: 277 tokens of prompt and response; .* reads {MAX_TOKENS}"),
        (([{"role": "tool", "content": "x"}], "b"), "row 2: the model's chat template refuses the prompt: no tools"),
    ],
)
def test_a_pair_that_cannot_be_read(conductor: str, model: str, pair: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pair_weights(conductor=conductor, model=model, pairs=[("a", "b"), pair])


def test_messages_need_the_template(conductor: str, model: str) -> None:
    with pytest.raises(DataError, match="row 1: `prompt` holds chat messages, which need the chat template"):
        pair_weights(conductor=conductor, model=model, pairs=[(CHAT, "4")], apply_chat_template=False)


def test_flags_as_csv_has_them() -> None:
    given = [True, False, None, "True", "false", ""]
    assert [pair.truncated for pair in check_pairs([("a", "b", flag) for flag in given])] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_a_model_of_another_size(conductor: str, tmp_path: Path) -> None:
    other = save_model(tmp_path, hidden=32)
    with pytest.raises(ConfigError, match=r"trained on a hidden size of 16, and the model .* has 32"):
        PairWeights(conductor, other)


def test_a_model_without_a_template(conductor: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no chat template.*--no-apply_chat_template"):
        PairWeights(conductor, save_model(tmp_path, template=None))


def test_thinking_is_handed_to_the_template(conductor: str, tmp_path: Path) -> None:
    """Here it is a part of the prompt, and so it changes the state that is read."""
    template = "{% if enable_thinking %}b{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    model = save_model(tmp_path, template=template)
    found = [
        pair_weights(conductor=conductor, model=model, pairs=[(prompt, "4")], enable_thinking=thinking)
        for prompt, thinking in (("ba", None), ("a", True), ("a", False))
    ]
    assert found[0] == found[1] != found[2]


def test_a_model_that_lacks_weights(conductor: str, model: str, tmp_path: Path) -> None:
    """transformers would put random numbers in their place."""
    from safetensors.torch import load_file, save_file

    broken = Path(save_model(tmp_path))
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name},
        broken / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ConfigError, match=r"lacks weights: model\.layers\.1\.mlp"):
        PairWeights(conductor, broken)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(conductor: str, model: str) -> None:
    with pytest.raises(ConfigError, match="device: cuda was asked for, and torch finds none"):
        PairWeights(conductor, model, device="cuda")


def test_folders_that_hold_neither(conductor: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the Conductor .* cannot be loaded"):
        PairWeights(tmp_path, model)
    with pytest.raises(ConfigError, match=r"the model .* cannot be loaded"):
        PairWeights(conductor, tmp_path)


# ── the command ──


def write_rows(file: Path) -> Path:
    rows = [
        {"id": f"n{number}", "prompt": prompt, "response": response, "truncated": cut, "score": number / 3}
        for number, (prompt, response, cut) in enumerate(PAIRS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def command(conductor: str, model: str, source: Path, output: Path, *more: str) -> list[str]:
    paths = ["--conductor", conductor, "--model", model, "--input", str(source), "--output", str(output)]
    return ["weights", *paths, *more]


def test_rows_come_back_in_order_with_their_columns(
    conductor: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_rows(tmp_path / "pairs.jsonl"), tmp_path / "new" / "weights.jsonl"
    assert main(command(conductor, model, source, output, "--batch_size", "2")) == 0
    assert capsys.readouterr().out == f"{output}\n"
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    expected = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    # Floats are written so that they come back to the bit.
    weights = pair_weights(conductor=conductor, model=model, pairs=PAIRS, batch_size=2)
    assert rows == [row | {"weights": found} for row, found in zip(expected, weights, strict=True)]
    assert [file.name for file in output.parent.iterdir()] == ["weights.jsonl"]


def test_the_rollouts_of_a_run_are_pairs(conductor: str, model: str, tmp_path: Path) -> None:
    """Parquet, with `truncated`, and a missing score as NaN, which JSON has not."""
    texts = [row for row in PAIRS if isinstance(row[0], str)]
    columns = dict(zip(("prompt", "response", "truncated"), map(list, zip(*texts, strict=True)), strict=True))
    pq.write_table(
        pa.table(columns | {"raw_length": [float("nan")] * 4, "nested": [[float("inf")]] * 4}), tmp_path / "r.parquet"
    )
    assert main(command(conductor, model, tmp_path / "r.parquet", tmp_path / "weights.jsonl")) == 0
    rows = [json.loads(line) for line in (tmp_path / "weights.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["prompt"], row["raw_length"], row["nested"]) for row in rows] == [
        (row[0], None, [None]) for row in texts
    ]
    expected = by_definition(conductor, model)[[at for at, row in enumerate(PAIRS) if isinstance(row[0], str)]]
    assert_close([row["weights"] for row in rows], expected)


def test_a_command_that_is_ended_leaves_nothing_that_looks_whole(
    conductor: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in the 34th batch of one pair, when the first 32, sorted together, have been computed."""
    source, output = tmp_path / "pairs.jsonl", tmp_path / "weights.jsonl"
    source.write_text('{"prompt": "a", "response": "b"}\n' * 100)
    output.write_text("before\n")
    probs, written = PairWeights._probs, []

    def ended(self: PairWeights, rows: Any) -> torch.Tensor:
        # What is in the file while the process lives is what a kill would leave.
        written.append((tmp_path / "weights.jsonl.partial").read_text().splitlines())
        if len(written) == 34:
            raise KeyboardInterrupt
        return probs(self, rows)

    monkeypatch.setattr(PairWeights, "_probs", ended)
    assert main(command(conductor, model, source, output, "--batch_size", "1")) == 130
    assert output.read_text() == "before\n"
    assert [len(lines) for lines in written] == [0] * 32 + [32] * 2
    assert all(json.loads(line)["weights"] for line in written[-1])


def test_its_help_needs_nothing_heavy() -> None:
    script = (
        "import sys; from openrlhf_maestro.cli.weights import run\n"
        "try: run(['--help'])\n"
        "except SystemExit: sys.exit(','.join({'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr == "\n" and "usage: maestro weights" in result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": 3}\n',
            "pairs.jsonl, row 2: `response` is a int",
        ),
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n', "pairs.jsonl, row 2: `response` is a NoneType"),
        ('{"prompt": "a", "answer": "b"}\n', "no column `response`; the columns are prompt, answer"),
        ('{"prompt": "a", "response": "b", "weights": 1}\n', "has a column `weights` already"),
        ("", "has no rows"),
        ('{"prompt"\n', "line 1 is not JSON"),
    ],
)
def test_input_that_cannot_be_used(
    conductor: str, model: str, tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text(text)
    assert main(command(conductor, model, source, tmp_path / "weights.jsonl")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "weights.jsonl").exists()


def test_what_the_command_line_refuses(
    conductor: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_rows(tmp_path / "pairs.jsonl"), tmp_path / "weights.jsonl"
    for argv, message in [
        (command(conductor, model, tmp_path / "none.jsonl", output), "--input: there is no file"),
        (command(conductor, model, source, source / "weights.jsonl"), "--output: .* cannot be written"),
        (
            command(conductor, model, source, output, "--batch_size", "0"),
            "--batch_size: 0 is not a whole number from 1",
        ),
        (command(conductor, model, source, output, "--batch_size", "all"), "--batch_size: all is not"),
        (["weights", "--input", str(source)], "--conductor, --model, --output"),
    ]:
        assert main(argv) == 2
        assert re.search(message, capsys.readouterr().err)


def test_the_help_says_how_texts_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["weights", "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "EOS token" in printed and "--no-apply_chat_template" in printed and ".partial" in printed
