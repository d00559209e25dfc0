"""Our configuration as the arguments that OpenRLHF's classes read. A contract test checks that none is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from openrlhf.utils.config import hierarchize

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.sft import SftConfig
from openrlhf_maestro.upstream.device import attn_implementation, param_dtype


def openrlhf_arguments(config: MaestroConfig, device: str) -> SimpleNamespace:
    """The nested namespace of OpenRLHF 0.11.2's `train_ppo_ray`.

    What this project does itself (rewards, advantages, loss, logging, evaluation) is set to OpenRLHF's neutral value.
    """
    flat = (
        _run(config) | _models(config) | _rollout_and_training(config) | _deepspeed(config, device) | _not_used(config)
    )
    return hierarchize(SimpleNamespace(**flat))


def scoring_arguments(config: MaestroConfig, device: str, *, ranks: int, tensor_parallel_size: int) -> SimpleNamespace:
    """The same for a model that is never trained.

    DeepSpeed wants its batch sizes to come out even over the model's ranks, also where it does not use them.
    """
    arguments = openrlhf_arguments(config, device)
    arguments.train.micro_batch_size = 1
    arguments.train.batch_size = ranks // tensor_parallel_size
    arguments.ds.tensor_parallel_size = tensor_parallel_size
    return arguments


def _run(config: MaestroConfig) -> dict[str, Any]:
    checkpoints = config.run_dir / "checkpoints"
    return {
        "local_rank": -1,
        "use_ms": False,
        "ckpt.path": str(checkpoints),
        "ckpt.output_dir": str(config.run_dir / "model"),
        "ckpt.save_steps": config.ckpt.save_steps,
        "ckpt.max_num": config.ckpt.max_num,
        "ckpt.max_mem": float("inf"),
        "ckpt.save_hf": False,
        "ckpt.disable_ds": False,
        # The controller decides what to resume from and says so to the workers.
        "ckpt.load_enable": False,
        "ckpt.best_metric_key": "none",
        "train.seed": config.train.seed,
        "train.full_determinism_enable": config.train.full_determinism_enable,
    }


def _models(config: MaestroConfig) -> dict[str, Any]:
    actor, adam = config.actor, config.actor.adam
    flat: dict[str, Any] = {
        "actor.model_name_or_path": actor.model_name_or_path,
        "actor.num_nodes": actor.num_nodes,
        "actor.num_gpus_per_node": actor.num_gpus_per_node,
        "actor.gradient_checkpointing_enable": actor.gradient_checkpointing_enable,
        "actor.gradient_checkpointing_reentrant": actor.gradient_checkpointing_reentrant,
        "actor.lr_scheduler": actor.lr_scheduler,
        "actor.lr_warmup_ratio": actor.lr_warmup_ratio,
        "actor.min_lr_ratio": actor.min_lr_ratio,
        "actor.max_norm": actor.max_norm,
        "actor.eps_clip": actor.eps_clip_low_high[0],
        "actor.eps_clip_low_high": actor.eps_clip_low_high,
        "actor.optim": "adam",
        "actor.adam.lr": adam.lr,
        "actor.adam.betas": adam.betas,
        "actor.adam.eps": adam.eps,
        "actor.adam.weight_decay": adam.weight_decay,
        "actor.muon.lr": 0.02,
        "ref.num_nodes": config.ref.num_nodes,
        "ref.num_gpus_per_node": config.ref.num_gpus_per_node,
        "ref.offload": config.ref.offload,
        "reward.model_name_or_path": config.reward.model_name_or_path,
        "reward.num_nodes": config.reward.num_nodes,
        "reward.num_gpus_per_node": config.reward.num_gpus_per_node,
        "reward.offload": config.reward.offload,
        "reward.normalize_enable": False,
    }
    return flat


def _rollout_and_training(config: MaestroConfig) -> dict[str, Any]:
    vllm, train, rollout = config.vllm, config.train, config.rollout
    return {
        "vllm.num_engines": vllm.num_engines,
        "vllm.tensor_parallel_size": vllm.tensor_parallel_size,
        "vllm.sync_backend": vllm.sync_backend,
        "vllm.sync_with_ray": vllm.sync_with_ray,
        "vllm.enable_prefix_caching": vllm.enable_prefix_caching,
        "vllm.enforce_eager": vllm.enforce_eager,
        "vllm.enable_sleep": vllm.enable_sleep,
        "vllm.gpu_memory_utilization": vllm.gpu_memory_utilization,
        "train.batch_size": train.batch_size,
        "train.micro_batch_size": train.micro_batch_size,
        "train.dynamic_batch_enable": train.dynamic_batch_enable,
        "train.max_tokens_per_gpu": train.max_tokens_per_gpu,
        "train.num_episodes": train.num_episodes,
        "train.max_epochs": train.max_epochs,
        "train.colocate_all": train.colocate_all,
        "train.colocate_actor_ref": train.colocate_actor_ref,
        "rollout.batch_size": rollout.batch_size,
        "rollout.n_samples_per_prompt": rollout.n_samples_per_prompt,
        "rollout.micro_batch_size": rollout.micro_batch_size,
        "rollout.max_tokens_per_gpu": rollout.max_tokens_per_gpu or train.max_tokens_per_gpu,
        "rollout.max_new_tokens": rollout.max_new_tokens,
        # OpenRLHF's Actor divides every logit by it, the reference answer's too: our forwards do it themselves.
        "rollout.temperature": 1.0,
        "rollout.top_p": 1.0,
        "data.max_len": config.data.max_len,
        "algo.kl.init_coef": config.algo.kl.init_coef,
        "algo.kl.estimator": config.algo.kl.estimator,
        "algo.kl.use_loss": True,
    }


def _deepspeed(config: MaestroConfig, device: str) -> dict[str, Any]:
    ds = config.ds
    return (
        _ds_fixed()
        | _ds_chosen(ds, device)
        | {
            "ds.adam_offload": ds.adam_offload,
            "ds.tensor_parallel_size": ds.tensor_parallel_size,
            "ds.zpg": ds.zpg,
            "ds.overlap_comm": ds.overlap_comm,
            "ds.grad_accum_dtype": ds.grad_accum_dtype,
            "ds.enable_sleep": ds.enable_sleep,
        }
    )


def _ds_chosen(ds: Any, device: str) -> dict[str, Any]:
    return {
        "ds.zero_stage": ds.zero_stage,
        "ds.param_dtype": param_dtype(ds.param_dtype, device),
        "ds.attn_implementation": attn_implementation(ds.attn_implementation, device),
    }


def _ds_fixed() -> dict[str, Any]:
    return {
        "ds.adam_offload": False,
        "ds.zpg": 1,
        "ds.overlap_comm": False,
        "ds.grad_accum_dtype": None,
        "ds.experts_implementation": None,
        "ds.load_in_4bit": False,
        "ds.lora.rank": 0,
        "ds.lora.alpha": 16,
        "ds.lora.target_modules": "all-linear",
        "ds.lora.dropout": 0,
        "ds.packing_samples": False,
        "ds.use_liger_kernel": False,
        "ds.value_head_prefix": "score",
        "ds.tensor_parallel_size": 1,
        "ds.ring_attn_size": 1,
        "ds.ring_attn_head_stride": 1,
        "ds.use_universal_ckpt": False,
        "ds.deepcompile": False,
    }


def _not_used(config: MaestroConfig) -> dict[str, Any]:
    """Options of code that this project replaces; OpenRLHF's constructors still read them."""
    return {
        "actor.dual_clip": None,
        "actor.loss_agg_mode": "token-mean",
        "actor.policy_loss_type": "ppo",
        "actor.aux_loss_coef": 0.0,
        "actor.entropy_coef": None,
        "actor.freeze_visual_encoder": False,
        "critic.model_name_or_path": None,
        "train.colocate_critic_reward": False,
        "train.enable_ema": False,
        "train.ema_beta": 0.992,
        "train.async_enable": False,
        "data.disable_fast_tokenizer": False,
        "algo.advantage.estimator": "group_norm",
        "algo.advantage.is_correction_level": "off",
        "algo.advantage.is_correction_mode": "mask",
        "algo.advantage.is_correction_gating": "ratio",
        "algo.advantage.is_correction_threshold": [0.5, 5.0],
        "algo.kl.unbiased_gradient": False,
    }


def sft_arguments(config: SftConfig, device: str) -> SimpleNamespace:
    """The nested namespace of OpenRLHF 0.11.2's `train_sft`."""
    output = config.ckpt.output_dir
    flat: dict[str, Any] = {
        "local_rank": -1,
        "use_ms": False,
        "model.model_name_or_path": config.model.model_name_or_path,
        "model.gradient_checkpointing_enable": config.model.gradient_checkpointing_enable,
        "model.gradient_checkpointing_reentrant": False,
        "model.aux_loss_coef": 0.0,
        "model.pretrain_mode_enable": False,
        "data.dataset": config.data.dataset,
        "data.dataset_split": config.data.dataset_split,
        "data.dataset_probs": None,
        "data.input_key": config.data.input_key,
        "data.output_key": config.data.output_key,
        "data.apply_chat_template": config.data.apply_chat_template,
        "data.input_template": None,
        "data.tokenizer_chat_template": None,
        "data.multiturn": False,
        "data.max_len": config.data.max_len,
        "data.max_samples": config.data.max_samples,
        "data.dataloader_num_workers": 0,
        "data.disable_fast_tokenizer": False,
        "eval.dataset": None,
        "eval.split": "train",
        "eval.steps": -1,
        "train.seed": config.train.seed,
        "train.full_determinism_enable": False,
        "train.batch_size": config.train.batch_size,
        "train.micro_batch_size": config.train.micro_batch_size,
        "train.max_epochs": config.train.max_epochs,
        "optim": "adam",
        "muon.lr": 0.02,
        "adam.lr": config.adam.lr,
        "adam.betas": config.adam.betas,
        "adam.eps": config.adam.eps,
        "adam.weight_decay": config.adam.weight_decay,
        "lr_scheduler": config.lr_scheduler,
        "lr_warmup_ratio": config.lr_warmup_ratio,
        "min_lr_ratio": config.min_lr_ratio,
        "max_norm": config.max_norm,
        "ckpt.path": f"{output}/checkpoints_sft",
        "ckpt.output_dir": output,
        "ckpt.save_steps": -1,
        "ckpt.save_hf": False,
        "ckpt.disable_ds": True,
        "ckpt.load_enable": False,
        "ckpt.max_num": 1,
        "ckpt.max_mem": int(1e8),
        "logger.logging_steps": 1,
        "logger.wandb.key": None,
        "logger.tensorboard_dir": None,
    }
    return hierarchize(SimpleNamespace(**(_ds_fixed() | flat | _ds_chosen(config.ds, device))))
