"""Ray actors that hold a model: policy, reference, preference model. Each subclasses OpenRLHF's."""
