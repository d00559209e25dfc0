"""Prompt templates, and prompts as tokens: the real Qwen3 chat template, enable_thinking, and one BOS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.prompts import TEMPLATES
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.sections import DataSection
from openrlhf_maestro.data import load_prompts, templates
from openrlhf_maestro.data.rendering import Chat, prompt_renderer
from openrlhf_maestro.data.templates import fill_template
from openrlhf_maestro.errors import ConfigError, DataError
from openrlhf_maestro.rewards.text import answer_text, format_reward, reasoning_end

SHARED = Path(os.environ.get("MAESTRO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
QWEN3 = SHARED / "qwen3_06b"
PAPER = Path(__file__).parents[2] / "examples" / "configs" / "paper"
MESSAGES = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def qwen3() -> Any:
    if not QWEN3.is_dir():
        pytest.skip(f"no Qwen3 tokenizer in {QWEN3}")
    return AutoTokenizer.from_pretrained(str(QWEN3))


# ── templates ──


def shape(template: str) -> str:
    """The reply that a bundled template shows, from its first tag on."""
    text = fill_template(template, "QUESTION")
    assert text.startswith("QUESTION\n")
    return text[text.index("\n<") + 1 :]


@pytest.mark.parametrize("template", ["plain", "reasoning"])
def test_the_reply_a_template_shows_earns_the_format_reward(template: str) -> None:
    assert format_reward(shape(template)) == 1.0
    assert (answer_text(shape(template)) or "").strip() == "your answer"


@pytest.mark.parametrize("template", ["plain", "reasoning"])
def test_the_paper_s_answer_prefix_is_what_the_template_shows_after_the_reasoning(template: str) -> None:
    config = load_config(MaestroConfig, ["--config", str(PAPER / "qwen3_8b_webinstruct.yaml")])
    assert config.data.input_template in ("plain", "reasoning") and config.perplexity is not None
    end = reasoning_end(shape(template))
    assert end is not None and shape(template)[end:].startswith(config.perplexity.answer_prefix)


def test_reasoning_asks_for_brief_steps_and_direct_for_none() -> None:
    assert "briefly" in fill_template("reasoning", "Q") and "briefly" not in fill_template("plain", "Q")
    assert shape("direct") == "<answer>\nyour answer\n</answer>" and "without any reasoning" in fill_template(
        "direct", "Q"
    )


def test_every_name_has_its_file_and_every_file_its_name() -> None:
    assert {file.stem for file in Path(templates.__file__).with_name("templates").glob("*")} == set(TEMPLATES)


def test_a_template_of_one_s_own_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Say: {}\n\n", encoding="utf-8")
    assert fill_template(str(file), "a {} b") == "Say: a {} b"  # filled once, its last line ends
    assert fill_template("{} and {}", "x") == "x and x"
    assert fill_template(None, "x") == "x"


def test_a_template_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.txt cannot be read \(No such file.*plain, reasoning, direct"):
        fill_template(str(tmp_path / "nothing.txt"), "x")
    (tmp_path / "flat.txt").write_text("no place")
    with pytest.raises(ConfigError, match=r"flat\.txt has no \{\}"):
        fill_template(str(tmp_path / "flat.txt"), "x")
    (tmp_path / "bytes.txt").write_bytes(b"\xff{}")
    with pytest.raises(ConfigError, match="not a UTF-8 text"):
        fill_template(str(tmp_path / "bytes.txt"), "x")
    with pytest.raises(ValueError, match="neither a file nor one of plain, reasoning, direct"):
        DataSection(prompt_dataset="x", input_template="plane")


def test_a_prompt_knows_its_own_question(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Why {}?", "reference": "r"}\n')
    for template in (None, "plain"):
        data = DataSection(prompt_dataset=str(file), input_template=template)
        (prompt,) = load_prompts(
            data,
            dataset=str(file),
            split="train",
            needs_reference=True,
            needing="it",
            max_samples=9,
            render=None,
            max_prompt_tokens=9,
        )
        assert prompt.question == "Why {}?" and prompt.text == fill_template(template, "Why {}?")
        assert prompt.messages == ({"role": "user", "content": prompt.text},)


# ── Qwen3 ──

USER = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("thinking", "text"), [(None, USER), (True, USER), (False, USER + "<think>\n\n</think>\n\n")])
def test_qwen3_s_thinking_is_as_asked(qwen3: Any, thinking: bool | None, text: str) -> None:
    token_ids = prompt_renderer(qwen3, Chat(enable_thinking=thinking))(MESSAGES)
    assert qwen3.decode(token_ids) == text


def test_without_thinking_no_response_in_the_format_follows_from_the_prompt(qwen3: Any) -> None:
    """The prompt closes the reasoning; what is left to write is the answer, and that alone earns nothing."""
    prompt = qwen3.decode(prompt_renderer(qwen3, Chat(enable_thinking=False))(MESSAGES))
    answer = "<answer>\n4\n</answer>"
    assert format_reward(prompt.partition("assistant\n")[2] + answer) == 1.0 and format_reward(answer) == 0.0


def test_a_text_is_one_user_message_and_stands_alone_without_the_template(qwen3: Any) -> None:
    assert prompt_renderer(qwen3, Chat())("Why?") == prompt_renderer(qwen3, Chat())(MESSAGES)
    plain = prompt_renderer(qwen3, Chat(apply_chat_template=False))
    assert qwen3.decode(plain("Why?")) == "Why?"  # Qwen3 has no BOS
    with pytest.raises(DataError, match="chat messages, which need the chat template"):
        plain(MESSAGES)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_template_that_does_not_know_thinking_refuses_the_option(thinking: bool) -> None:
    tokenizer = small("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ConfigError, match=r"data\.enable_thinking.*does not know it.*Leave it null"):
        prompt_renderer(tokenizer, Chat(enable_thinking=thinking))
    prompt_renderer(tokenizer, Chat(apply_chat_template=False, enable_thinking=thinking))  # notes() says the rest


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--data.enable_thinking=false"], "`format`, `perplexity` cannot be earned"),
        (["--data.enable_thinking", "--data.apply_chat_template=false"], "data.enable_thinking has no effect"),
        (["--data.enable_thinking"], None),
        ([], None),
        (["--data.input_template=direct"], "asks for no reasoning, and `format`, `perplexity` cannot be earned"),
        (["--data.input_template=reasoning"], None),
        (["--data.enable_thinking=false", "--rewards.components=[{kind: entropy}, {kind: length}]"], None),
    ],
)
def test_thinking_that_costs_the_format_is_said_before_the_run(options: list[str], note: str | None) -> None:
    rewards = ["--rewards.components=[{kind: format}, {kind: perplexity}, {kind: length}]"]
    sizes = ["--train.batch_size=90", "--actor.model_name_or_path=m", "--data.prompt_dataset=rows.jsonl"]
    notes = load_config(MaestroConfig, [*rewards, *sizes, *options]).notes()
    assert (notes == []) if note is None else (len(notes) == 1 and note in notes[0])


# ── BOS ──

BOS, A, B = 0, 2, 3


def small(chat_template: str | None, *, adds_bos: bool = False) -> Any:
    """A tokenizer of four words; `adds_bos` as Llama's does it."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": BOS, "[UNK]": 1, "a": A, "b": B}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="[UNK]")
    fast.chat_template = chat_template
    return fast


WRITES_BOS = "{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %} b"
NO_BOS = "{% for m in messages %}{{ m.content }}{% endfor %} b"


@pytest.mark.parametrize("template", [WRITES_BOS, NO_BOS])
def test_bos_stands_once_through_a_chat_template(template: str) -> None:
    render = prompt_renderer(small(template, adds_bos=True), Chat())
    assert render([{"role": "user", "content": "a a"}]) == [BOS, A, A, B]


def test_bos_stands_once_before_a_text() -> None:
    render = prompt_renderer(small(None, adds_bos=True), Chat(apply_chat_template=False))
    assert render("a b") == render("<s> a b") == [BOS, A, B]


@pytest.mark.parametrize(("template", "start"), [(WRITES_BOS, [BOS]), (NO_BOS, [])])
def test_a_tokenizer_that_adds_no_bos_has_what_its_template_writes(template: str, start: list[int]) -> None:
    assert prompt_renderer(small(template), Chat())("a") == [*start, A, B]
    assert prompt_renderer(small(None), Chat(apply_chat_template=False))("a") == [A]


# ── errors ──


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no chat template. Set data\.apply_chat_template: false"):
        prompt_renderer(small(None), Chat())


def test_a_prompt_that_the_template_refuses_is_a_data_error() -> None:
    refusing = small("{{ raise_exception('only one turn') }}")
    with pytest.raises(DataError, match="chat template refuses the prompt: only one turn"):
        prompt_renderer(refusing, Chat())("a")


def test_the_row_of_a_prompt_that_is_refused_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n')
    data = DataSection(prompt_dataset=str(file), label_key=None)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: the model's chat template refuses"):
        load_prompts(
            data,
            dataset=str(file),
            split="train",
            needs_reference=False,
            needing="it",
            max_samples=9,
            render=prompt_renderer(small("{{ raise_exception('no') }}"), data),
            max_prompt_tokens=9,
        )
