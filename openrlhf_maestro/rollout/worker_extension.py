"""What is added to vLLM's own worker: OpenRLHF's weight updates, and the CPU's reload from a file."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap


class WorkerExtension(WorkerWrap):
    """Mixed into vLLM's worker class by its `worker_extension_cls`."""

    def load_weights_file(self: Any, path: str) -> None:
        """Replace all weights by those of a safetensors file in Hugging Face layout."""
        from safetensors.torch import load_file
        from torch.nn.functional import linear
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        model = self.model_runner.model
        # On a CPU linear weights are pre-packed after loading: model.load_weights fails, reload_weights packs anew.
        self.model_runner.reload_weights(weights_iterator=load_file(path).items())
        # A tied head has no weights of its own to reload: its packed copy would stay that of the first load. Unpacked,
        # it reads the embedding as it is. (The config's tie_word_embeddings does not tell: vLLM clears it where the
        # checkpoint holds a copy of the head.)
        head = getattr(model, "lm_head", None)
        embeddings = [
            module for module in model.modules() if isinstance(module, VocabParallelEmbedding) and module is not head
        ]
        if head is not None and any(embedding.weight is head.weight for embedding in embeddings):
            head.cpu_linear = linear
