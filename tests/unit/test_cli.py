"""The `maestro` command: help, errors and exit codes."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from openrlhf_maestro import __version__
from openrlhf_maestro.cli.main import main
from openrlhf_maestro.config.fields import options
from openrlhf_maestro.config.reference import CONFIGURED
from openrlhf_maestro.errors import ConfigError, DataError, RunError, UserError

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "openrlhf", "transformers", "datasets", "numpy", "pyarrow")

BASE = ["--actor.model_name_or_path=policy", "--data.prompt_dataset=rows.jsonl"]


def put_in_place(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def raising(error: BaseException):  # type: ignore[no-untyped-def]
    def run(argv: list[str]) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["train", "--help"],
        ["sft", "-h"],
        ["serve-rewards", "-h"],
        ["lab", "--help"],
        ["train", "--rolout.batch_size", "3"],
        ["trian"],
        [],
    ],
    ids=" ".join,
)
def test_help_and_errors_need_nothing_heavy_and_under_a_second(argv: list[str]) -> None:
    script = (
        "import sys; from openrlhf_maestro.cli.main import main; main(sys.argv[1:]); "
        f"sys.exit(','.join(name for name in {HEAVY} if name in sys.modules))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", script, *argv], cwd=REPOSITORY, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The script leaves with the names of what was imported, written as the last line of stderr; none: an empty one.
    assert result.stderr.splitlines()[-1] == "", result.stderr
    # CPU time: the wall clock of a busy machine says little.
    assert after.ru_utime - before.ru_utime < 1.0


@pytest.mark.parametrize("argv", [["--compare", "--help"], ["--compare", "a", "b", "-h"], ["-h", "--compare", "a"]])
def test_the_help_of_a_comparison_is_its_own(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *argv]) == 0
    printed = capsys.readouterr().out
    assert "--baseline" in printed and "--resamples" in printed and "judge.model" not in printed


@pytest.mark.parametrize(("command", "cls"), CONFIGURED.items())
def test_the_help_of_a_command_lists_every_option(
    command: str, cls: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    flat = " ".join(printed.split())
    for known in options(cls):
        assert f"--{known.name} " in printed
        assert " ".join(known.meaning.split()) in flat
    assert max(map(len, printed.splitlines())) <= 100


def test_the_help_shows_defaults_units_and_what_is_required(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    main(["train", "--help"])
    printed = capsys.readouterr().out
    assert "--actor.model_name_or_path  required\n" in printed
    assert re.search(r"--rollout.max_new_tokens  \(default: 1024\)\n +longest response \[tokens\]\n", printed)
    assert "the ratio is clipped to [1 - low, 1 + high]" in printed


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", printed, re.MULTILINE) for name in ("train", "sft", "report", "serve-rewards"))


def test_no_command_prints_the_overview_to_stderr_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: maestro" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "maestro: `trian` is not a command. Did you mean `train`?\n"
    assert main(["zzz"]) == 2
    assert "prepare, train, sft" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("a"), 2), (DataError("a"), 2), (UserError("a"), 2), (RunError("a"), 1)],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_one_line_and_their_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_place(monkeypatch, "openrlhf_maestro.cli.train", run=raising(error))
    assert main(["train"]) == code
    assert capsys.readouterr() == ("", "maestro: a\n")


def test_other_exceptions_are_bugs_and_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch, "openrlhf_maestro.cli.train", run=raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(["train"])


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put_in_place(monkeypatch, "openrlhf_maestro.cli.train", run=raising(KeyboardInterrupt()))
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "maestro: interrupted\n"


def test_a_command_gets_its_arguments_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(argv: list[str]) -> int:
        seen.append(list(argv))
        return 7

    put_in_place(monkeypatch, "openrlhf_maestro.cli.sft", run=run)
    monkeypatch.setattr(sys, "argv", ["maestro", "sft", "--train.seed", "3"])
    assert main() == 7 and seen == [["--train.seed", "3"]]


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["train", *BASE, "--rolout.batch_size", "3"], ["--rolout.batch_size is not", "`rollout.batch_size`"]),
        (["train", "--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["train", *BASE, "--conductor.kind=single", "--conductor.component=length", "--rollout.batch_size=17",
          "--rewards.components=[{kind: length}]"], ["85 responses", "do not divide"]),
        (["sft", "--trian.seed", "3"], ["`train.seed`"]),
    ],
    ids=["misspelt", "missing file", "does not divide", "sft"],
)  # fmt: skip
def test_configuration_errors_are_one_paragraph_and_exit_2(
    argv: list[str], fragments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    for fragment in fragments:
        assert fragment in err


def test_python_dash_m_is_the_command() -> None:
    command = [sys.executable, "-m", "openrlhf_maestro", "trian"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "maestro: `trian` is not a command. Did you mean `train`?\n"


class TestReport:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path | list[Path], Path | None]]:
        calls: list[tuple[Path | list[Path], Path | None]] = []

        def write_report(run_dir: Path, output: Path | None, extras: object) -> Path:
            calls.append((run_dir, output))
            return output or run_dir / "report.html"

        def write_comparison(run_dirs: list[Path], output: Path | None, extras: object) -> Path:
            calls.append((run_dirs, output))
            return output or Path("report.html")

        monkeypatch.setattr("openrlhf_maestro.report.write_report", write_report)
        monkeypatch.setattr("openrlhf_maestro.report.write_comparison", write_comparison)
        return calls

    def test_prints_where_the_page_is(self, calls: list[object], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", "runs/a"]) == 0
        assert calls == [(Path("runs/a"), None)]
        assert capsys.readouterr().out == "runs/a/report.html\n"

    def test_output(self, calls: list[object], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", "runs/a", "--output", "page.html"]) == 0
        assert calls == [(Path("runs/a"), Path("page.html"))]
        assert capsys.readouterr().out == "page.html\n"

    def test_several_runs_make_one_page(self, calls: list[object], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", "runs/a", "runs/b"]) == 0
        assert calls == [([Path("runs/a"), Path("runs/b")], None)]
        assert capsys.readouterr().out == "report.html\n"

    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["runs/a", "--output"],
            ["runs/a", "--ouput=x"],
            ["runs/a", "--watch", "--interval_s", "0"],
            ["runs/a", "--interval_s", "5"],
        ],
    )
    def test_wrong_arguments_are_one_line_and_exit_2(
        self, argv: list[str], calls: list[object], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["report", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("maestro: ") and calls == []

    def test_a_folder_that_is_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", str(tmp_path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and str(tmp_path) in err and "Traceback" not in err

    @pytest.mark.parametrize("output", ["folder", "file/page.html", "file"])
    def test_a_page_that_cannot_be_written_is_one_paragraph(
        self, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for folder in ("run", "folder"):
            (tmp_path / folder).mkdir()
        (tmp_path / "run/config.yaml").write_text("run: {name: a}")
        (tmp_path / "file").write_text("")
        target = tmp_path / output
        code = main(["report", str(tmp_path / "run"), "--output", str(target)])
        out, err = capsys.readouterr()
        if output == "file":  # an earlier page
            assert (code, out) == (0, f"{target}\n")
            return
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"maestro: {target} cannot be written: ") and "--output" in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "run"]
