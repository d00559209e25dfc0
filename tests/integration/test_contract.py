"""What this project relies on in other projects' code: a change there fails here first, by name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("MAESTRO_DEVICE", "cpu")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.sft import SftConfig
from openrlhf_maestro.upstream import patches

pytestmark = pytest.mark.integration

ALL_PATCHES = (*patches.TORCH, *patches.TRANSFORMERS, *patches.OPENRLHF, *patches.DEEPSPEED, *patches.CLASSES)


@pytest.fixture(scope="module")
def openrlhf() -> Path:
    """The folder of the installed OpenRLHF, imported without any patch applied."""
    patches.import_openrlhf()
    import openrlhf.models

    return Path(openrlhf.models.__file__).parents[1]


@pytest.mark.parametrize("patch", ALL_PATCHES, ids=lambda patch: patch.target)
def test_patched_source_is_the_one_the_patch_was_written_for(openrlhf: Path, patch: patches.Patch) -> None:
    assert patch.source_hash() == patch.sha256, f"{patch.target} changed upstream; read it again: {patch.reason}"


# Files whose code runs in a training run, and the names under which they hold the arguments.
RL_PATH = (
    "trainer/ray/ppo_actor.py",
    "trainer/ray/launcher.py",
    "trainer/ppo_utils/experience_maker.py",
    "trainer/ppo_utils/replay_buffer.py",
    "utils/deepspeed/deepspeed.py",
    "utils/utils.py",
)
SFT_PATH = (
    "cli/train_sft.py",
    "trainer/sft_trainer.py",
    "datasets/sft_dataset.py",
    "datasets/utils.py",
    "utils/utils.py",
)
# Read only in branches that cannot be reached here, or only by OpenRLHF's command line.
NOT_REACHED = {
    "adam.lr", "critic.freezing_steps", "max_norm", "optim",
    "reward.clip_range", "reward.overlong_buffer_len", "reward.stop_properly_penalty_coef",
    "algo.advantage.gamma", "algo.advantage.lambd", "algo.advantage.no_std_norm",
}  # fmt: skip


def options_read(folder: Path, files: tuple[str, ...]) -> set[str]:
    """Dotted names read as `...args.x.y` or getattr(...args.x, "y", ...) in these files."""
    found = set()
    for file in files:
        tree = ast.parse((folder / file).read_text())
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                found.add(_option(ast.unparse(node)))
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "getattr"
                and isinstance(node.args[1], ast.Constant)
            ):
                found.add(_option(f"{ast.unparse(node.args[0])}.{node.args[1].value}"))
    return found - {""}


def _option(expression: str) -> str:
    parts = expression.split(".")
    if "args" not in parts[:3] or not all(part.isidentifier() for part in parts):
        return ""
    return ".".join(parts[parts.index("args") + 1 :])


def supplied(arguments: SimpleNamespace, prefix: str = "") -> set[str]:
    names = set()
    for name, value in vars(arguments).items():
        names.add(prefix + name)
        if isinstance(value, SimpleNamespace):
            names |= supplied(value, f"{prefix}{name}.")
    return names


def test_every_option_that_openrlhf_reads_in_training_is_supplied(openrlhf: Path) -> None:
    from openrlhf_maestro.upstream.options import openrlhf_arguments

    config = MaestroConfig.model_validate(
        {
            "actor": {"model_name_or_path": "m", "num_gpus_per_node": 2},
            "ref": {"num_gpus_per_node": 1},
            "reward": {"model_name_or_path": "r", "num_gpus_per_node": 1},
            "data": {"prompt_dataset": "d"},
        }
    )
    read = options_read(openrlhf, RL_PATH)
    assert {"actor.adam", "ds.zero_stage", "train.batch_size", "vllm.sync_backend"} <= read, "the scan finds nothing"
    methods = {"__dict__"}
    missing = read - supplied(openrlhf_arguments(config, "cpu")) - NOT_REACHED - methods
    assert not missing


def test_every_option_that_openrlhf_reads_in_fine_tuning_is_supplied(openrlhf: Path) -> None:
    from openrlhf_maestro.upstream.options import sft_arguments

    config = SftConfig.model_validate({"model": {"model_name_or_path": "m"}, "data": {"dataset": "d"}})
    read = {name for name in options_read(openrlhf, SFT_PATH) if not name.startswith("__")}
    # train_sft's own command line, under `if __name__ == "__main__"`, uses the same names.
    missing = read - supplied(sft_arguments(config, "cpu")) - {"ckpt.best_metric_key", "logger.wandb.org"}
    assert not {name for name in missing if not name.startswith("logger.wandb.")}


def test_trust_remote_code_follows_the_configuration_whatever_the_caller_says(tmp_path: Path) -> None:
    """A folder whose config asks for its own code is refused, though OpenRLHF's callers pass trust_remote_code=True."""
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}')
    (tmp_path / "own.py").write_text(
        "from transformers import PretrainedConfig\n"
        "class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n    proof = 'code ran'\n"
    )
    program = (
        "import sys\n"
        "from openrlhf_maestro.upstream.patches import prepare_process\n"
        "prepare_process()\n"
        "from transformers import AutoConfig\n"
        "try:\n"
        "    print(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True).proof)\n"
        "except ValueError as error:\n"
        "    print('refused', 'trust_remote_code' in str(error))\n"
    )
    said = {}
    for trust in ("0", "1"):
        environment = os.environ | {
            "MAESTRO_TRUST_REMOTE_CODE": trust,
            "MAESTRO_DEVICE": "cpu",
            "DS_ACCELERATOR": "cpu",
            "HF_HOME": str(tmp_path / "hf"),
        }
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
        )
        said[trust] = done.stdout.strip().splitlines()[-1:]
    assert said == {"0": ["refused True"], "1": ["code ran"]}
