"""Bundled assets: built once, whole or not at all, and loadable like any Hugging Face folder."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf_maestro.data.assets import PolicyRecipe, PreferenceRecipe, TasksRecipe, asset_path, ensure_asset, store
from openrlhf_maestro.data.assets.pairs import FLAWS, make_pair
from openrlhf_maestro.data.tasks import answer_of, check

TASKS = TasksRecipe(train_per_family=300, validation_per_family=30, test_per_family=30)
POLICY = PolicyRecipe(tasks=TASKS)
UNTIED = PolicyRecipe(tasks=TASKS, tie_word_embeddings=False)
PREFERENCE = PreferenceRecipe(tasks=TASKS, train_steps=20, pairs_per_step=16, held_out_pairs=80)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("assets")


def read_rows(assets: Path, split: str) -> list[dict[str, str]]:
    file = ensure_asset("tasks", assets, TASKS) / f"{split}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- the store ---------------------------------------------------------------------------------------------------


def test_an_asset_is_built_once(assets: Path) -> None:
    first = ensure_asset("tasks", assets, TASKS)
    built_at = (first / "train.jsonl").stat().st_mtime_ns
    assert ensure_asset("tasks", assets, TASKS) == first
    assert (first / "train.jsonl").stat().st_mtime_ns == built_at


def test_a_changed_recipe_is_another_folder(assets: Path) -> None:
    paths = {
        asset_path("policy_base", assets, recipe)
        for recipe in (POLICY, UNTIED, PolicyRecipe(tasks=TASKS, seed=1), PolicyRecipe(tasks=TasksRecipe(seed=1)))
    }
    assert len(paths) == 4


def test_a_changed_family_is_another_folder(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = asset_path("tasks", assets, TASKS)
    monkeypatch.setattr(store, "_source_digest", lambda: "other code")
    assert asset_path("tasks", assets, TASKS) != before


def test_unknown_names_and_wrong_recipes_are_refused(assets: Path) -> None:
    with pytest.raises(ValueError, match="no bundled asset 'policy_bas'; there are tasks, policy_base"):
        ensure_asset("policy_bas", assets)
    with pytest.raises(ValueError, match="asset preference takes a PreferenceRecipe, not a TasksRecipe"):
        ensure_asset("preference", assets, TASKS)


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(recipe: object, folder: Path, directory: Path) -> None:
        (folder / "train.jsonl").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(store, "_build", half)
    with pytest.raises(OSError, match="disk full"):
        ensure_asset("tasks", tmp_path, TASKS)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builders_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = asset_path("tasks", tmp_path, TASKS)

    def overtaken(recipe: object, folder: Path, directory: Path) -> None:
        (folder / "train.jsonl").write_text("second")
        target.mkdir()
        (target / "train.jsonl").write_text("first")

    monkeypatch.setattr(store, "_build", overtaken)
    assert ensure_asset("tasks", tmp_path, TASKS) == target
    assert (target / "train.jsonl").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_there_is_found_fast_and_without_torch(assets: Path) -> None:
    """In a fresh process: the first call pays for its imports, the second one tells the cost of the look-up."""
    for name, recipe in (("tasks", TASKS), ("policy_base", POLICY)):
        ensure_asset(name, assets, recipe)
    code = f"""
import sys, time
from openrlhf_maestro.data.assets import PolicyRecipe, TasksRecipe, ensure_asset
ensure_asset("tasks", {str(assets)!r}, TasksRecipe(300, 30, 30))
start_s = time.perf_counter()
ensure_asset("policy_base", {str(assets)!r}, PolicyRecipe(tasks=TasksRecipe(300, 30, 30)))
print(time.perf_counter() - start_s, sorted({{"torch", "transformers", "tokenizers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    seconds, imported = done.stdout.strip().split(" ", 1)
    assert imported == "[]"
    assert float(seconds) < 0.05


# --- the policy and its tokenizer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(assets: Path):
    return AutoTokenizer.from_pretrained(ensure_asset("policy_base", assets, POLICY))


def test_tags_are_single_tokens_that_survive_decoding(tokenizer) -> None:
    text = "<think>It saw 12.</think><answer>the box</answer>"
    ids = tokenizer(text + tokenizer.eos_token, add_special_tokens=False).input_ids
    tags = [tokenizer.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    assert [token for token in ids if token in tags] == tags
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_any_text_round_trips(tokenizer) -> None:
    text = "Zürich, 東京 and  two   spaces\n\ttabs 3.14 <b>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_pad_eos_and_size(assets: Path, tokenizer) -> None:
    config = json.loads((ensure_asset("policy_base", assets, POLICY) / "config.json").read_text())
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(tokenizer) == config["vocab_size"] == POLICY.vocab_size


def test_sft_and_rl_see_the_same_tokens(assets: Path, tokenizer) -> None:
    """OpenRLHF's SFT tokenises prompt and response as one text; RL samples after the tokens of the prompt alone."""
    for row in read_rows(assets, "train")[:200]:
        ask = [{"role": "user", "content": row["prompt"]}]
        prompt_text = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
        whole_text = tokenizer.apply_chat_template(
            [*ask, {"role": "assistant", "content": row["response"]}], tokenize=False
        )
        # SFTDataset cuts the prompt off by its length and adds " " + eos unless eos ends the text already.
        assert whole_text.startswith(prompt_text) and whole_text.endswith(tokenizer.eos_token)
        prompt_ids = tokenizer(prompt_text, add_special_tokens=False).input_ids
        response_ids = tokenizer(row["response"], add_special_tokens=False).input_ids
        whole_ids = tokenizer(whole_text, add_special_tokens=False).input_ids
        assert whole_ids == [*prompt_ids, *response_ids, tokenizer.eos_token_id]
        assert tokenizer.decode(prompt_ids) == prompt_text


@pytest.mark.parametrize("recipe", [POLICY, UNTIED], ids=["tied", "untied"])
def test_policy_loads_and_embeddings_are_tied_as_asked(assets: Path, recipe: PolicyRecipe) -> None:
    name = "policy_base" if recipe.tie_word_embeddings else "policy_base_untied"
    model = AutoModelForCausalLM.from_pretrained(ensure_asset(name, assets, recipe))
    shared = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert shared == recipe.tie_word_embeddings
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 350_000 < sum(parameter.numel() for parameter in model.parameters()) < 650_000


def test_policy_weights_depend_on_the_seed_alone(assets: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = ensure_asset("policy_base", tmp_path, POLICY)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator was touched"
    first = ensure_asset("policy_base", assets, POLICY)
    other = ensure_asset("policy_base", tmp_path, PolicyRecipe(tasks=TASKS, seed=1))
    read = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert read[0] == read[1] != read[2]


# --- the preference model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flaw", FLAWS)
def test_each_flaw_makes_a_response_worse(assets: Path, flaw: str) -> None:
    """By the rule: everything but a repeated reasoning, which is wordy rather than wrong."""
    rows = read_rows(assets, "train")
    rng = random.Random(0)
    wrong = 0
    for row in rows[:100]:
        response = FLAWS[flaw](row, rng, rows)
        assert response != row["chosen"]
        wrong += not check(row["datasource"], row["prompt"], row["reference"], response)
    assert wrong > (30 if flaw == "repetitive" else 95)


def test_pairs_prefer_the_careful_response_and_name_the_flaw(assets: Path) -> None:
    rows = read_rows(assets, "train")
    rng = random.Random(1)
    pairs = [make_pair(row, rng, rows) for row in rows[:200]]
    assert {pair.flaw for pair in pairs} == set(FLAWS)
    for row, pair in zip(rows, pairs, strict=False):
        assert (pair.prompt, pair.chosen) == (row["prompt"], row["chosen"])
        assert pair.rejected != pair.chosen
        if pair.flaw in ("no_reasoning", "cut_off"):
            assert answer_of(pair.rejected) is None


def test_preference_model_loads_and_beats_chance_on_new_prompts(assets: Path) -> None:
    folder = ensure_asset("preference", assets, PREFERENCE)
    metrics = json.loads((folder / "preference_metrics.json").read_text())
    assert metrics["held_out_pairs"] == 80
    assert metrics["held_out_accuracy"] > 0.65

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = read_rows(assets, "test")[0]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": response}], tokenize=False
        )
        for response in (row["chosen"], "no")
    ]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")).logits
        alone = [model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0] for text in texts]
    assert together.shape == (2, 1)
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)  # padding changes no score


def test_preference_template_and_tokens_are_not_the_policys(assets: Path, tokenizer) -> None:
    other = AutoTokenizer.from_pretrained(ensure_asset("preference", assets, PREFERENCE))
    dialogue = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>a</think>"}]
    assert other.apply_chat_template(dialogue, tokenize=False) == "[ASK]Hi[REPLY]<think>a</think>[STOP]"
    assert tokenizer.apply_chat_template(dialogue, tokenize=False) == (
        "<|user|>Hi<|end|><|assistant|><think>a</think><|end|>"
    )
    assert other.pad_token_id != other.eos_token_id
    assert len(other) == PREFERENCE.vocab_size
    assert len(other("<think>", add_special_tokens=False).input_ids) > 1
