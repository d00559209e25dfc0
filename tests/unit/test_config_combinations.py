"""Combinations that cannot work on this device or in this placement are refused, by the option's name."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from openrlhf_maestro.config.components import LengthComponent
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.upstream.device import check_device_options


def make_config(**sections: Any) -> MaestroConfig:
    base: dict[str, Any] = {
        "actor": {"model_name_or_path": "policy"},
        "reward": {"model_name_or_path": "preference"},
        "data": {"prompt_dataset": "rows.jsonl"},
    }
    return MaestroConfig.model_validate(base | sections)


def test_the_smallest_configuration_is_accepted() -> None:
    check_device_options(make_config(), "cpu")
    assert make_config().notes() == []


@pytest.mark.parametrize(
    ("sections", "option"),
    [
        ({"ds": {"param_dtype": "bf16"}}, "ds.param_dtype"),
        ({"ds": {"attn_implementation": "flash_attention_2"}}, "ds.attn_implementation"),
        ({"vllm": {"enable_sleep": True}, "train": {"colocate_all": True}}, "vllm.enable_sleep"),
    ],
)
def test_what_a_cpu_cannot_do(sections: dict[str, Any], option: str) -> None:
    config = make_config(**sections)
    with pytest.raises(ConfigError, match=option):
        check_device_options(config, "cpu")
    check_device_options(config, "cuda")


def test_one_forward_for_both_branches_needs_a_mask_of_its_own() -> None:
    components = [{"kind": "format"}, {"kind": "perplexity", "shared_forward": True}]
    config = make_config(rewards={"components": components})
    check_device_options(config, "cpu")
    with pytest.raises(ConfigError, match=r"shared_forward.*ds\.attn_implementation is flash_attention_2 here"):
        check_device_options(config, "cuda")
    masked = make_config(rewards={"components": components}, ds={"attn_implementation": "sdpa"})
    check_device_options(masked, "cuda")


def test_only_components_with_a_forward_of_their_own_are_used_once() -> None:
    lengths = [{"kind": "length"}, {"kind": "length", "name": "short", "l_max": 10}]
    assert make_config(rewards={"components": lengths}).component_names == ["length", "short"]
    perplexities = [{"kind": "perplexity"}, {"kind": "perplexity", "name": "again"}]
    with pytest.raises(ValidationError, match="two components are of kind perplexity"):
        make_config(rewards={"components": perplexities})


@pytest.mark.parametrize("gate", ["fromat", "length"])
def test_a_gate_is_another_component(gate: str) -> None:
    with pytest.raises(ValidationError, match=rf"gate of length is {gate}, which is not another component \(format\)"):
        make_config(rewards={"components": [{"kind": "format"}, {"kind": "length", "gate": gate}]})


def test_a_gate_that_would_always_be_closed_is_refused() -> None:
    with pytest.raises(ValidationError, match="gate of length is perplexity, whose values are never above 0"):
        make_config(rewards={"components": [{"kind": "perplexity"}, {"kind": "length", "gate": "perplexity"}]})


def test_an_anchor_is_compared_by_its_raw_scores() -> None:
    anchor = {"kind": "match", "anchor": True, "normalisation": "group_rank"}
    with pytest.raises(ValidationError, match="match is the anchor, whose raw scores count"):
        make_config(rewards={"components": [{"kind": "format"}, {"kind": "length"}, anchor]})


def test_a_parameter_is_the_data_sources_own_or_else_the_general_one() -> None:
    length = LengthComponent.model_validate(
        {"l_min": 10, "by_datasource": {"stories": {"l_max": 400}, "sums": {"l_min": 0}}}
    )
    assert length.limits("other", 100) == (10, 100)
    assert length.limits("stories", 100) == (10, 400)
    assert length.limits("sums", 100) == (0, 100)
    assert LengthComponent().limits("other", 100) == (50, 100)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"l_min": 20, "l_max": 20}, r"l_min \(20\) must be below l_max \(20"),
        ({"l_min": 1024}, r"l_min \(1024\) must be below l_max \(1024"),
        ({"l_min": 50, "by_datasource": {"sums": {"l_max": 40}}}, r"l_min of sums \(50\) must be below l_max \(40"),
    ],
)
def test_length_limits_are_in_order_for_every_data_source(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(rewards={"components": [{"kind": "format"}, {"kind": "length"} | parameters]})


def test_a_colocated_preference_model_has_at_most_as_many_ranks_as_the_policy() -> None:
    with pytest.raises(ValidationError, match=r"train\.colocate_all has a place for 1 ranks"):
        make_config(train={"colocate_all": True}, reward={"model_name_or_path": "preference", "num_gpus_per_node": 2})


def mixture(probs: str, dataset: str = "a.jsonl, b.jsonl,") -> MaestroConfig:
    return make_config(data={"prompt_dataset": dataset, "prompt_probs": probs})


def test_shares_of_sources_are_exact_and_brought_to_sum_1() -> None:
    assert make_config().data.probs is None
    assert mixture("0.7,0.3").data.probs == (Fraction(7, 10), Fraction(3, 10))
    assert mixture("2, 1").data.probs == mixture("2/3,1/3").data.probs == (Fraction(2, 3), Fraction(1, 3))


@pytest.mark.parametrize("probs", ["0.7,x", "0.5,0", "0.5,-0.5", "nan,1", "inf,1", "1/0,1", "", ","])
def test_shares_of_sources_are_numbers_above_0(probs: str) -> None:
    with pytest.raises(ValidationError, match=r"prompt_probs .* should be numbers above 0 by commas"):
        mixture(probs)


@pytest.mark.parametrize("probs", ["1", "0.2,0.3,0.5"])
def test_there_is_a_share_for_each_source(probs: str) -> None:
    with pytest.raises(ValidationError, match="shares for the 2 sources of prompt_dataset"):
        mixture(probs)


PARALLEL = {
    "actor": {"model_name_or_path": "policy", "num_gpus_per_node": 6},
    "ref": {"num_gpus_per_node": 2},
    "ds": {"zero_stage": 1, "tensor_parallel_size": 2},
}


def test_responses_divide_over_data_parallel_ranks() -> None:
    """90 responses over 6 ranks are 15 each; in pairs that share every layer they are 30 for each of 3 pairs."""
    config = make_config(**PARALLEL)
    assert (config.actor_data_ranks, config.ref_data_ranks, config.scoring_ranks) == (3, 1, 3)
    with pytest.raises(ValidationError, match=r"do not divide over 3 ranks x train.micro_batch_size 4"):
        make_config(**PARALLEL | {"train": {"micro_batch_size": 4}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ds": {"tensor_parallel_size": 2}}, r"Set ds.zero_stage to 1, or ds.tensor_parallel_size to 1"),
        ({"actor": PARALLEL["actor"] | {"num_gpus_per_node": 5}}, r"actor.num_nodes x actor.num_gpus_per_node = 5"),
        ({"ref": {"num_gpus_per_node": 3}}, r"Set ref.num_gpus_per_node to a multiple of 2"),
        ({"ref": {"num_gpus_per_node": 8}}, r"over the 8 ranks of ref.* Nearest that does: 6 ranks"),
    ],
)
def test_what_auto_tp_cannot_do(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(**PARALLEL | changed)


def test_micro_batches_by_tokens_hold_any_response() -> None:
    by_tokens = {"dynamic_batch_enable": True, "max_tokens_per_gpu": 2048}
    config = make_config(train=by_tokens)
    assert config.update_token_budget == config.scoring_token_budget == 2048
    assert make_config().update_token_budget is None
    with pytest.raises(ValidationError, match=r"train.max_tokens_per_gpu .* Set it to 2048 or more"):
        make_config(train=by_tokens | {"max_tokens_per_gpu": 2047})
    with pytest.raises(ValidationError, match=r"rollout.max_tokens_per_gpu .* Set it to 2048 or more"):
        make_config(train=by_tokens, rollout={"max_tokens_per_gpu": 100})
    # Two GPUs that share every layer share its activations as well.
    assert make_config(**PARALLEL, train=by_tokens | {"max_tokens_per_gpu": 1024}).update_token_budget == 2048


def test_of_the_two_sizes_of_a_micro_batch_one_counts() -> None:
    sizes = {"train": {"dynamic_batch_enable": True, "micro_batch_size": 5}, "rollout": {"micro_batch_size": 5}}
    assert make_config(**sizes).notes() == [
        "rollout.micro_batch_size has no effect with train.dynamic_batch_enable: true.",
        "train.micro_batch_size has no effect with train.dynamic_batch_enable: true.",
    ]
    sizes = {"train": {"max_tokens_per_gpu": 9000}, "rollout": {"max_tokens_per_gpu": 9000}}
    assert make_config(**sizes).notes() == [
        "rollout.max_tokens_per_gpu has no effect with train.dynamic_batch_enable: false.",
        "train.max_tokens_per_gpu has no effect with train.dynamic_batch_enable: false.",
    ]
    # Then only the responses themselves divide over the ranks: 90 over 3, whatever 7 is.
    six = {"actor": {"model_name_or_path": "policy", "num_gpus_per_node": 3}}
    make_config(**six, train={"dynamic_batch_enable": True, "micro_batch_size": 7})


def test_a_verdict_needs_what_it_is_made_of() -> None:
    def problem(**evaluation: Any) -> str:
        with pytest.raises(ValidationError) as caught:
            make_config(eval={"dataset": "rows.jsonl"} | evaluation)
        return str(caught.value)

    assert "verdicts by rule exist for bundled:tasks only" in problem()
    assert "set eval.judge.model" in problem(verdict="judge")
    assert "even number has no majority" in problem(verdict="judge", judge={"model": "m", "votes": 2})
    make_config(eval={"dataset": "rows.jsonl", "verdict": "reference"})
    make_config(eval={"dataset": "rows.jsonl", "verdict": "judge", "judge": {"model": "m"}})
    make_config(eval={"dataset": "bundled:tasks"})


def test_options_of_another_verdict_have_no_effect() -> None:
    config = make_config(eval={"dataset": "bundled:tasks", "judge": {"votes": 5}, "reference": {"metric": "chrf"}})
    assert config.notes() == [
        "eval.judge.votes has no effect with eval.verdict: rule.",
        "eval.reference.metric has no effect with eval.verdict: rule.",
    ]


def test_the_best_metric_needs_evaluations_to_choose_from() -> None:
    best = {"best_metric_key": "eval/creative/accuracy"}
    assert make_config(ckpt=best, eval={"dataset": "bundled:tasks", "steps": 2}).notes() == []
    assert make_config(ckpt=best, eval={"dataset": "bundled:tasks"}).notes() == [
        "ckpt.best_metric_key has no effect without eval.dataset and eval.steps."
    ]
