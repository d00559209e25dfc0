"""The Conductor's network [1]: a linear head on the policy's hidden state, a softmax with a learned temperature.

Departures from the paper, all of which leave the uniform start and the gradient of an interior point as they are:

- W and b start at zero, so that training begins from equal weights whatever the hidden states are.
- The floor of [E.1] mixes with the uniform distribution, p -> (1 - K eps) p + eps, in place of clamping at eps and
  renormalising. Clamping cuts the gradient of every entry below eps, which then can never return; and renormalising
  takes a clamped entry below eps again. The mixture is on the simplex, at least eps everywhere, and has a gradient
  everywhere. The two differ by less than K eps.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from openrlhf_maestro.conductor.context import check_choice

_CARD = """---
{{ card_data }}
---

# MAESTRO Conductor

A linear head that maps a policy's hidden state after a response to the weights of the response's reward components.

```python
from openrlhf_maestro.conductor import Conductor

conductor = Conductor.from_pretrained("path/to/this/folder")
weights = conductor.probs(hidden)  # (B, hidden_size) -> (B, K), in the order of conductor.reward_names
```
"""


class Conductor(  # type: ignore[call-arg]  # mypy does not follow huggingface_hub, whose mixin takes these keywords
    nn.Module,
    PyTorchModelHubMixin,
    library_name="openrlhf_maestro",
    license="apache-2.0",
    tags=["reinforcement-learning", "maestro"],
    model_card_template=_CARD,
):
    """pi(.|h) = softmax((W h + b) / tau) over K reward components, with a floor. Computes in float32, autocast or not.

    Args:
        hidden_size: H, the policy's hidden size.
        reward_names: names of the K components, in the order of the last dimension of everything returned.
        temperature: the initial tau; log tau is what is stored.
        min_prob: eps, the smallest probability of a component; below 1 / K.
        learn_temperature: whether log tau is a parameter or a constant.
        context_layer: the layer of the policy that h is read from; kept for those who make h, see ``context``.
        context_pooling: the tokens of that layer's output that h is made of; likewise.

    Raises:
        ValueError: if an argument is out of range or a reward name is repeated.
    """

    log_temperature: Tensor  # () a parameter or a buffer

    def __init__(
        self,
        hidden_size: int,
        reward_names: Sequence[str],
        *,
        temperature: float = 1.0,
        min_prob: float = 1e-4,
        learn_temperature: bool = True,
        context_layer: str = "last",
        context_pooling: str = "last_token",
    ) -> None:
        super().__init__()
        names = list(reward_names)
        if hidden_size < 1:
            raise ValueError(f"Conductor: hidden_size must be at least 1, got {hidden_size}")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"Conductor: reward_names must be distinct and not empty, got {names}")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"Conductor: temperature must be positive, got {temperature}")
        if not 0 <= min_prob * len(names) < 1:
            raise ValueError(f"Conductor: min_prob must be in [0, 1/K) with K = {len(names)}, got {min_prob}")
        check_choice(context_layer, context_pooling)
        self.hidden_size = hidden_size
        self.reward_names = names
        self.context_layer = context_layer
        self.context_pooling = context_pooling
        # What save_pretrained writes to config.json, whatever types the caller used.
        self._hub_mixin_config = {
            "hidden_size": int(hidden_size),
            "reward_names": names,
            "temperature": float(temperature),
            "min_prob": float(min_prob),
            "learn_temperature": bool(learn_temperature),
            "context_layer": context_layer,
            "context_pooling": context_pooling,
        }
        self.head = nn.Linear(hidden_size, len(names), dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        log_temperature = torch.tensor(math.log(temperature), dtype=torch.float32)
        if learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)
        # One step up, because rounding to float32 may take 1e-4 below 1e-4.
        self._floor = torch.nextafter(torch.tensor(min_prob, dtype=torch.float32), torch.tensor(1.0)).item()

    @property
    def temperature(self) -> float:
        """tau as it is now."""
        return self.log_temperature.exp().item()

    def probs(self, h: Tensor) -> Tensor:
        """The continuous distribution pi(.|h), floored at ``min_prob``.

        Args:
            h: (..., H), any floating point dtype.

        Returns:
            (..., K) float32 on the simplex, differentiable in the Conductor's parameters.

        Raises:
            ValueError: if the last dimension is not ``hidden_size``.
        """
        if h.shape[-1] != self.hidden_size:
            raise ValueError(f"Conductor: hidden_size is {self.hidden_size}, got hidden states {tuple(h.shape)}")
        with torch.autocast(h.device.type, enabled=False):
            logits = self.head(h.float()) / self.log_temperature.exp()
            return (1 - len(self.reward_names) * self._floor) * logits.softmax(dim=-1) + self._floor

    def forward(self, h: Tensor) -> Tensor:
        """Same as ``probs``: at inference nothing is sampled [E.1]."""
        return self.probs(h)

    @torch.no_grad()
    def sample(self, h: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw an emphasis for every response independently of the others in its group [3.2].

        Args:
            h: (B, H).
            generator: source of randomness, on the device of ``h``; None is torch's global one.

        Returns:
            actions (B,) int64, indices into ``reward_names``, and their log-probabilities (B,) float32, no gradient.
        """
        probs = self.probs(h)
        actions = torch.multinomial(probs, num_samples=1, generator=generator)  # (B, 1)
        return actions.squeeze(1), probs.gather(1, actions).squeeze(1).log()

    def weights(self, h: Tensor, actions: Tensor | None = None, emphasis: float = 0.5) -> Tensor:
        """The weights of the scalar reward: w = (1 - eta) pi(h) + eta onehot(a).

        Args:
            h: (..., H).
            actions: (...) int64; None returns the continuous distribution and ``emphasis`` plays no part.
            emphasis: eta in [0, 1]. 1 is one-hot, 0 the continuous distribution.

        Returns:
            (..., K) float32 on the simplex.

        Raises:
            ValueError: if ``emphasis`` is outside [0, 1].
        """
        if not 0 <= emphasis <= 1:
            raise ValueError(f"Conductor: emphasis must be in [0, 1], got {emphasis}")
        probs = self.probs(h)
        if actions is None:
            return probs
        onehot = nn.functional.one_hot(actions, len(self.reward_names)).to(probs)
        return (1 - emphasis) * probs + emphasis * onehot

    def check(
        self,
        hidden_size: int,
        reward_names: Sequence[str],
        context_layer: str | None = None,
        context_pooling: str | None = None,
    ) -> None:
        """Refuse to be used with another policy, rewards or context than this Conductor was made for.

        Args:
            hidden_size: H of the policy.
            reward_names: the components, in order.
            context_layer: what h is read from; None: not compared.
            context_pooling: likewise.

        Raises:
            ValueError: naming the field that differs, with both values.
        """
        _refuse_difference("hidden_size", self.hidden_size, hidden_size)
        _refuse_difference("reward_names", self.reward_names, list(reward_names))
        _refuse_difference("context_layer", self.context_layer, context_layer or self.context_layer)
        _refuse_difference("context_pooling", self.context_pooling, context_pooling or self.context_pooling)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        map_location: str = "cpu",
        **arguments: Any,
    ) -> "Conductor":
        """What ``from_pretrained`` calls, stricter than the mixin's own: no pickle, no other shapes, no missing tensor.

        Raises:
            ValueError: naming the field, where an argument differs from the stored one, or the file does not fit it.
        """
        for field in ("hidden_size", "reward_names"):
            if config is None or field not in config:
                raise ValueError(f"Conductor in {model_id}: config.json is missing or has no {field}")
        assert config is not None
        for field, given in arguments.items():
            if field in config:
                given = list(given) if field == "reward_names" else given
                _refuse_difference(field, config[field], given, where=model_id)
        conductor = cls(**arguments)
        filename = constants.SAFETENSORS_SINGLE_FILE
        if Path(model_id).is_dir():
            path = str(Path(model_id) / filename)
        else:
            path = hf_hub_download(
                repo_id=model_id,
                filename=filename,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
            )
        if not Path(path).is_file():
            raise ValueError(f"Conductor in {model_id}: there is no {filename}")
        try:
            stored = load_file(path, device=map_location)
        except SafetensorError as error:
            raise ValueError(f"Conductor in {model_id}: {filename} cannot be read: {error}") from error
        expected = conductor.state_dict()
        _refuse_difference("tensors", sorted(stored), sorted(expected), where=path)
        for name, tensor in expected.items():
            _refuse_difference(f"shape of {name}", tuple(stored[name].shape), tuple(tensor.shape), where=path)
        conductor.load_state_dict(stored)
        return conductor.to(map_location).eval()


def _refuse_difference(field: str, stored: object, given: object, where: str | None = None) -> None:
    if stored != given:
        place = f" in {where}" if where else ""
        raise ValueError(f"Conductor{place}: {field} is {stored}, not {given}")
