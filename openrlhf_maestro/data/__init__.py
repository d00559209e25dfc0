"""Prompt data sets: reading, checking and ordering. No torch, Ray, vLLM, DeepSpeed or OpenRLHF."""

from openrlhf_maestro.data.prompts import Prompt, PromptLoader, PromptSet, fit_prompts, load_prompts
from openrlhf_maestro.errors import DataError

__all__ = ["DataError", "Prompt", "PromptLoader", "PromptSet", "fit_prompts", "load_prompts"]
