"""MAESTRO on OpenRLHF: GRPO whose reward components are weighed, response by response, by a learned Conductor."""

__version__ = "0.1.0"
