"""What a process needs before it starts. Imports `config` only: login nodes have no torch."""

from openrlhf_maestro.launch.environment import ray_settings, worker_environment

__all__ = ["ray_settings", "worker_environment"]
