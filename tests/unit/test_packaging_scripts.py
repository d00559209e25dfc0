"""install.sh, run in a scratch checkout with a double of Python that records pip's calls instead of obeying them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [ROOT / ".ci/run", *sorted((ROOT / "examples/scripts").glob("*.sh"))]

# `-m venv` makes a folder with a copy of the double. Calls of pip and the compilation are recorded by their last
# argument, and fail where it contains FAIL_ON. What install.sh asks of the interpreter itself goes to the real one.
DOUBLE = f"""#!/usr/bin/env bash
record() {{
  echo "$1" >>"$CALLS"
  if [[ -n "$FAIL_ON" && "$1" == *"$FAIL_ON"* ]]; then echo "no such thing: $FAIL_ON" >&2; exit 1; fi
}}
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
    cp "${{BASH_SOURCE[0]}}" "$3/bin/python"; printf '#!%s\\n' "$3/bin/python" >"$3/bin/pip"; record venv ;;
  "-m pip "*) record "${{*: -1}}" ;;
  "-VV" | "-c import pip") echo "Python 3.11.7 (a double)" ;;
  "-m compileall "*) record "compile Python files"; exit 1 ;;
  *os.path.realpath*) echo "${{BASH_SOURCE[0]}}" ;;
  *builder*) record "compile in $TORCH_EXTENSIONS_DIR" ;;
  *) exec {shlex.quote(sys.executable)} "$@" ;;
esac
"""


class Checkout:
    """A copy of what install.sh reads."""

    def __init__(self, folder: Path, name: str = "checkout") -> None:
        self.root = folder / name
        self.calls_file = folder / "calls"
        self.python = folder / "python3.11"
        self.python.write_text(DOUBLE, encoding="utf-8")
        self.python.chmod(0o755)
        (self.root / "examples/scripts").mkdir(parents=True)
        for name in ["setup.py", "requirements-cpu.txt", "requirements-cpu-nodeps.txt", "examples/scripts/install.sh"]:
            shutil.copy(ROOT / name, self.root / name)

    def install(self, fail_on: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"PYTHON": str(self.python), "CALLS": str(self.calls_file), "FAIL_ON": fail_on} | environment
        return subprocess.run(
            ["bash", str(self.root / "examples/scripts/install.sh")],
            env=os.environ | variables,
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """What was recorded since the last call of this method."""
        lines = self.calls_file.read_text(encoding="utf-8").splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines

    def all_steps(self) -> list[str]:
        return ["venv", *self.steps_after_venv()]

    def steps_after_venv(self) -> list[str]:
        return [
            "wheel",
            "torch==2.13.0+cpu",
            f"{self.root}/requirements-cpu.txt",
            f"{self.root}/requirements-cpu-nodeps.txt",
            f"{self.root}[dev]",
            "compile Python files",
            f"compile in {self.root}/.venv/torch_extensions",
        ]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_passes_shellcheck(script: Path) -> None:
    if not (shellcheck := shutil.which("shellcheck")):
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, script], capture_output=True, text=True, timeout=60)
    assert result.stdout == ""


def test_first_run_does_every_step_in_order(checkout: Checkout) -> None:
    result = checkout.install()
    assert result.returncode == 0, result.stderr
    assert checkout.calls() == checkout.all_steps()


def test_second_run_does_nothing(checkout: Checkout) -> None:
    checkout.install()
    checkout.calls()
    result = checkout.install()
    assert result.returncode == 0
    assert "up to date" in result.stdout
    assert checkout.calls() == []


def test_changed_requirement_is_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.install()
    for name in ["setup.py", "requirements-cpu.txt", "requirements-cpu-nodeps.txt"]:
        checkout.calls()
        with (checkout.root / name).open("a", encoding="utf-8") as file:
            file.write("# changed\n")
        assert checkout.install().returncode == 0
        assert checkout.calls() == checkout.steps_after_venv(), name


def test_failed_step_shows_its_log_and_is_taken_up_again(checkout: Checkout) -> None:
    result = checkout.install(fail_on="nodeps")
    assert result.returncode == 1
    assert "no such thing: nodeps" in result.stdout
    assert "Installation stopped at: OpenRLHF, vLLM" in result.stderr
    assert checkout.calls() == checkout.all_steps()[:5]

    assert checkout.install().returncode == 0
    assert checkout.calls() == checkout.steps_after_venv()


def test_failed_compilation_is_a_failed_installation(checkout: Checkout) -> None:
    assert checkout.install(fail_on="compile in").returncode == 1
    assert "up to date" not in checkout.install(fail_on="compile in").stdout


def test_torch_comes_from_pytorch_s_index_where_pip_s_own_lacks_it(checkout: Checkout) -> None:
    result = checkout.install(fail_on="torch==2.13.0+cpu")
    assert result.returncode == 0
    assert checkout.calls()[2:4] == ["torch==2.13.0+cpu", "https://download.pytorch.org/whl/cpu"]


def test_missing_cpu_torch_stops_before_anything_large(checkout: Checkout) -> None:
    result = checkout.install(
        fail_on="to"
    )  # torch==2.13.0+cpu and https://download.pytorch.org, and nothing before them
    assert result.returncode == 1
    assert "PIP_FIND_LINKS" in result.stdout
    assert checkout.calls() == ["venv", "wheel", "torch==2.13.0+cpu", "https://download.pytorch.org/whl/cpu"]


def test_lock_of_a_killed_compilation_is_removed(checkout: Checkout) -> None:
    checkout.install(fail_on="compile in")
    lock = checkout.root / ".venv/torch_extensions/fused_adam/lock"
    lock.parent.mkdir()
    lock.touch()
    assert checkout.install().returncode == 0
    assert not lock.exists()


def test_half_installed_package_is_installed_anew(checkout: Checkout) -> None:
    checkout.install(fail_on="nodeps")
    packages = checkout.root / ".venv/lib/python3.11/site-packages"
    for name, files in {"whole-1.0.dist-info": ["METADATA", "INSTALLER"], "half-1.0.dist-info": ["METADATA"]}.items():
        (packages / name).mkdir()
        for file in files:
            (packages / name / file).touch()
    assert checkout.install().returncode == 0
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_moved_checkout_gets_a_new_environment(checkout: Checkout) -> None:
    checkout.install()
    checkout.calls()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.install().returncode == 0
    assert checkout.calls() == checkout.all_steps()


def test_spaces_in_the_path_put_the_environment_elsewhere(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, "a checkout")
    result = checkout.install(XDG_CACHE_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    venv = (checkout.root / ".venv").resolve()
    assert venv.parent == tmp_path / "openrlhf_maestro"
    assert checkout.calls()[-1] == f"compile in {venv}/torch_extensions"
    assert "up to date" in checkout.install(XDG_CACHE_HOME=str(tmp_path)).stdout


def test_nowhere_without_spaces_is_refused(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, "a checkout")
    result = checkout.install(XDG_CACHE_HOME=str(tmp_path / "a cache"))
    assert result.returncode == 1
    assert "a folder without spaces in its path" in result.stderr
    assert checkout.calls() == []


def test_unsupported_python_is_named(checkout: Checkout) -> None:
    old = checkout.root / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" || exit 1\n', encoding="utf-8")
    old.chmod(0o755)
    result = checkout.install(PYTHON=str(old))
    assert result.returncode == 1
    assert "Python 3.10, 3.11 or 3.12" in result.stderr
    assert "Python 3.9.18" in result.stderr
    assert not (checkout.root / ".venv").exists()


def test_missing_compiler_is_named(checkout: Checkout) -> None:
    result = checkout.install(CXX="no-such-compiler")
    assert result.returncode == 1
    assert "a C++ compiler, no-such-compiler" in result.stderr
    assert checkout.calls() == []
