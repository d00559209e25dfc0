"""Every change that is made to another project's code at run time, in one table.

On CUDA only what `trust_remote_code`, fp32 and our classes need is changed; the rest lets OpenRLHF's CUDA-only lines
run on a CPU. Each entry carries the hash of the upstream source it was written for; a test fails when that changes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openrlhf_maestro.upstream.device import worker_device


@dataclass(frozen=True)
class Patch:
    """One replaced attribute.

    `target` and `read` are "module:qualified.name"; `read` is the upstream code that makes it necessary (default the
    target) and `sha256` the first 16 digits of its source's hash. `replace` maps the original to its replacement; None
    where that depends on the run (`put_class`).
    """

    target: str
    reason: str
    replace: Callable[[Any], Any] | None
    sha256: str
    read: str | None = None
    cpu_only: bool = True

    def source_hash(self) -> str:
        owner, name = _locate(self.read or self.target)
        return hashlib.sha256(inspect.getsource(getattr(owner, name)).encode()).hexdigest()[:16]

    def apply(self) -> None:
        owner, name = _locate(self.target)
        original = inspect.getattr_static(owner, name)
        if self.replace is None or getattr(original, "__maestro__", False):
            return
        replacement = self.replace(getattr(owner, name))
        _mark(replacement)
        setattr(owner, name, replacement)


def _locate(path: str) -> tuple[Any, str]:
    """The object that holds the attribute that "module:a.b" names, and the attribute's name."""
    module, _, qualified = path.partition(":")
    *parents, name = qualified.split(".")
    owner = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def _mark(replacement: Any) -> None:
    """So that a second `apply` leaves it as it is."""
    replacement.__maestro__ = True


def _current_device(_original: Any) -> Any:
    return lambda: torch.device("cpu")


def _do_nothing(_original: Any) -> Any:
    return lambda *_args, **_kwargs: None


def _mesh_on_cpu(original: Any) -> Any:
    return lambda _device, *args, **kwargs: original("cpu", *args, **kwargs)


def _torch_without_cuda_devices(original: types.ModuleType) -> Any:
    class CpuTorch(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def device(self, name: Any) -> torch.device:
            return torch.device("cpu" if str(name).startswith("cuda") else name)

    return CpuTorch("torch")


def _with_fp32(original: Any) -> Any:
    return lambda name: torch.float32 if name == "fp32" else original(name)


def _tensor_parallel_in_any_precision(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        ds = kwargs["args"].ds
        size, ds.tensor_parallel_size = ds.tensor_parallel_size, 1
        original(self, *args, **kwargs)
        self.ds_tensor_parallel_size = ds.tensor_parallel_size = size

    return __init__


def _keep_the_norm(_original: Any) -> Any:
    def clip_fp32_gradients(self: Any) -> None:
        from deepspeed.runtime.utils import clip_grad_norm_

        parameters = self.module.parameters()
        norm = clip_grad_norm_(parameters=parameters, max_norm=self.gradient_clipping(), mpu=self.mpu)
        self._global_grad_norm = norm

    return clip_fp32_gradients


def _trust_as_configured(original: Any) -> Any:
    """`from_pretrained` of an Auto class, with the configured trust_remote_code whatever the caller says."""
    function = original.__func__

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["trust_remote_code"] = os.environ.get("MAESTRO_TRUST_REMOTE_CODE") == "1"
        return function(cls, *args, **kwargs)

    return classmethod(from_pretrained)


_TRUST = "OpenRLHF hard-codes trust_remote_code=True; here it follows run.trust_remote_code (default False)"

TORCH = (
    Patch("torch.cuda:current_device", "OpenRLHF moves tensors there", _current_device, "6e9804168a5c7f8c"),
    Patch("torch.cuda:empty_cache", "called around every phase", _do_nothing, "bce971e6854fcc53"),
    Patch("torch.cuda:synchronize", "called after every barrier", _do_nothing, "7055e6143ffee8f1"),
    Patch("torch.cuda:set_device", "called by setup_distributed", _do_nothing, "86c6d0bf42224be6"),
)

TRANSFORMERS = tuple(
    Patch(f"transformers.models.auto.{owner}.from_pretrained", _TRUST, _trust_as_configured, sha256, cpu_only=False)
    for owner, sha256 in (
        ("configuration_auto:AutoConfig", "3b97c759230ad7b9"),
        ("tokenization_auto:AutoTokenizer", "4adaf31537ed91da"),
        ("processing_auto:AutoProcessor", "219cadfaf619c5fc"),
        ("auto_factory:_BaseAutoModelClass", "1d4989bbe43de5d3"),
    )
)

OPENRLHF = (
    Patch(
        "openrlhf.utils.deepspeed.deepspeed:init_device_mesh",
        'setup_distributed asks for a "cuda" mesh',
        _mesh_on_cpu,
        "979d281389a0a57a",
        read="openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.setup_distributed",
    ),
    Patch(
        "openrlhf.trainer.ppo_utils.replay_buffer:torch",
        'the buffer builds torch.device(f"cuda:{...}")',
        _torch_without_cuda_devices,
        "4b675d5bdab2b09f",
        read="openrlhf.trainer.ppo_utils.replay_buffer:NaiveReplayBuffer.__init__",
    ),
    Patch(
        "openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.__init__",
        "refuses tensor parallelism in fp32, which works",
        _tensor_parallel_in_any_precision,
        "ae914f3cfa3ae011",
        cpu_only=False,
    ),
    Patch(
        "openrlhf.utils.utils:convert_to_torch_dtype",
        "knows bf16 and fp16 only",
        _with_fp32,
        "042a16e2ff51cd90",
        cpu_only=False,
    ),
)


DEEPSPEED = (
    Patch(
        "deepspeed.runtime.engine:DeepSpeedEngine.clip_fp32_gradients",
        "forgets the gradient norm, which ZeRO 1 to 3 keep: in fp32 without ZeRO it would be logged as 0",
        _keep_the_norm,
        "c3ad53cbce68a72f",
        cpu_only=False,
    ),
)


# Classes that OpenRLHF's code finds by a module's global name, where ours goes: see `put_class`.
CLASSES = (
    Patch(
        "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer",
        "PolicyModelActor builds its trainer by this name; ours has METHOD's objective",
        None,
        "1c647f50beb14916",
        cpu_only=False,
    ),
    Patch(
        "openrlhf.trainer.ray.vllm_engine:RolloutRayActor",
        "create_vllm_engines starts this actor with dtype and trust_remote_code fixed; ours takes the configured ones",
        None,
        "70331b59ea5bd152",
        read="openrlhf.trainer.ray.vllm_engine:create_vllm_engines",
        cpu_only=False,
    ),
)


def put_class(target: str, replacement: Any) -> None:
    """Exchange one of `CLASSES`."""
    patch = next(patch for patch in CLASSES if patch.target == target)
    owner, name = _locate(patch.target)
    setattr(owner, name, replacement)


def apply_patches(*tables: tuple[Patch, ...]) -> None:
    """Apply the tables' entries to this process, once each."""
    on_cpu = worker_device() == "cpu"
    for table in tables:
        for patch in table:
            if on_cpu or not patch.cpu_only:
                patch.apply()


def prepare_process() -> None:
    """Make this process ready to import and use OpenRLHF's models and trainers, on the device it was started for."""
    apply_patches(TORCH, TRANSFORMERS)
    import_openrlhf()
    apply_patches(OPENRLHF, DEEPSPEED)
    if worker_device() == "cpu":
        load_compiled_ops()


def import_openrlhf() -> None:
    """Import OpenRLHF's models, which everything else of it imports, with or without flash-attn."""
    with _flash_attn_stand_in():
        importlib.import_module("openrlhf.models")


def load_compiled_ops() -> None:
    """Hand DeepSpeed the CPU ops that the install compiled.

    Its own loader would look for ninja and a compiler, take 2 s an op to find nothing changed, and wait for ever on
    the lock of a process that was killed while loading.
    """
    from deepspeed.ops.op_builder.builder import OpBuilder
    from torch.utils.cpp_extension import _import_module_from_library

    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", ""))
    for name in ("deepspeed_shm_comm", "fused_adam"):
        if name not in OpBuilder._loaded_ops and (folder / name / f"{name}.so").is_file():
            OpBuilder._loaded_ops[name] = _import_module_from_library(name, str(folder / name), True)


@contextmanager
def _flash_attn_stand_in() -> Iterator[None]:
    """Let `openrlhf.models.ring_attn_utils` be imported where flash-attn is not installed.

    Its names are needed for packed samples only; here a call of any of them raises. The stand-in is taken out of
    `sys.modules` again, so that nothing else believes flash-attn to be there.
    """
    if importlib.util.find_spec("flash_attn") is not None:
        yield
        return
    # Both look for flash-attn when they are imported, and must not find the stand-in.
    importlib.import_module("transformers.modeling_utils")
    importlib.import_module("peft")
    names = {
        "flash_attn": (),
        "flash_attn.utils": (),
        "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
        "flash_attn.utils.distributed": ("all_gather",),
    }
    for module_name, functions in names.items():
        module = types.ModuleType(module_name)
        for function in functions:
            setattr(module, function, _needs_flash_attn(function))
        sys.modules[module_name] = module
    try:
        yield
    finally:
        for module_name in names:
            del sys.modules[module_name]


def _needs_flash_attn(name: str) -> Callable[..., Any]:
    def unavailable(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(
            f"flash_attn's {name} is needed for packed samples and ring attention; flash-attn is not installed."
        )

    return unavailable
