"""Sampling of responses: vLLM engines, the executor that runs in them, and the weights on their way in."""
