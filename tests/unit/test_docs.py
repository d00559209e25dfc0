"""The documentation against the code: metrics, columns, links, the paper map, configurations and commands."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from openrlhf_maestro.cli.compare import parser as compare_parser
from openrlhf_maestro.conductor import ConductorSettings, make_orchestrator
from openrlhf_maestro.config.fields import options
from openrlhf_maestro.config.load import ConfigError, load_config
from openrlhf_maestro.config.reference import CONFIGURED
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.serve import ServeConfig
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.rollout.responses import Response
from openrlhf_maestro.trainer.batch import Rollout, Scored, TokenValues
from openrlhf_maestro.trainer.metrics import Stopwatch, step_metrics
from openrlhf_maestro.trainer.run_dir import rollout_columns

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "openrlhf_maestro"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
WRITTEN = tuple(page for page in sorted(DOCS.glob("*.md")) if page.name != "configuration.md")

SOURCE, NAMES = "a data set", ("one", "two")
# Packages that import without Ray, vLLM, DeepSpeed and OpenRLHF.
PLAIN = ("lab", "rewards", "conductor", "objective", "data", "evaluation", "report", "launch", "config")
METRIC = re.compile(r"(?:time|rollout|reward|advantage|conductor|policy|eval)/")


def first_cells(page: Path) -> list[str]:
    """What stands in code quotes at the start of each row of the page's tables."""
    return re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)


def section(page: Path, heading: str) -> str:
    """The text of a level-1 section."""
    _, _, text = page.read_text(encoding="utf-8").partition(f"\n# {heading}\n")
    assert text, f"{page.name} has no section {heading}"
    return text.partition("\n# ")[0]


def template(name: str) -> str:
    """A produced metric or column in the form the documentation writes: names replaced by <...>."""
    name = name.replace(SOURCE, "<datasource>")
    return re.sub(rf"(/|_)({'|'.join(NAMES)})(?=/|_s$|$)", r"\1<name>", name)


# ── metrics and columns ──


@pytest.fixture(scope="module")
def scored() -> Scored:
    """One group of two responses and two components."""
    prompt = Prompt("1", "prompt", ({"role": "user", "content": "prompt"},), "reference", SOURCE, "rows.jsonl", 1)
    response = Response([1, 2], np.zeros(2, dtype=np.float32), False)
    pair = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    each = torch.ones(2)
    return Scored(
        rollouts=[Rollout(prompt, response, "text", 0)] * 2,
        component_names=list(NAMES),
        raw=pair,
        normalised=pair,
        anchor=each,
        weights=pair,
        probs=pair,
        actions=torch.tensor([0, 1]),
        hidden=torch.zeros(2, 3),
        scalar=each,
        advantages=each,
        constant=torch.tensor([True, True]),
        spread=each,
        truncated=torch.tensor([False, False]),
        response_tokens=torch.tensor([2, 2]),
        mean_entropy=each,
        kl=each,
        kl_penalty=each,
        policy_loss_tokens=torch.tensor([2, 2]),
        logprob_diff_mean=each,
        logprob_diff_max=each,
        log_prob_mean=each,
        tokens=TokenValues(*[torch.zeros(2, 3)] * 4, ref_log_probs=None),
        missing_reasons={},
        reward_s=dict.fromkeys(NAMES, 0.0),
        reward_wait_s=0.0,
    )


def produced_metrics(scored: Scored) -> set[str]:
    """Keys that are made by what can be called here: step_metrics with a learned Conductor, and the stopwatch."""
    settings = ConductorSettings(
        hidden_size=3,
        temperature=1.0,
        min_prob=1e-4,
        learn_temperature=True,
        lr=1e-3,
        update_every=1,
        entropy_coef=0.0,
        emphasis=0.5,
    )
    orchestrator = make_orchestrator("conductor", NAMES, settings=settings)
    update = dict.fromkeys(returned_keys(PACKAGE / "workers" / "update.py", "_update"), 0.0)
    return {template(key) for key in step_metrics(scored, update, orchestrator) | Stopwatch().metrics()}


def function(path: Path, name: str) -> ast.AST:
    found = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    assert len(found) == 1, f"{path} has {len(found)} functions {name}"
    return found[0]


def returned_keys(path: Path, name: str) -> list[str]:
    """Keys of the dictionary that a function returns as a literal."""
    for node in ast.walk(function(path, name)):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise AssertionError(f"{name} in {path} returns no dictionary")


def written_metrics(path: Path) -> set[str]:
    """Literal metric names in a module that cannot be imported without Ray; placeholders as they are written there."""
    keys = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                part.value if isinstance(part, ast.Constant) else "<datasource>"  # type: ignore[misc]
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if METRIC.match(text) and " " not in text and not text.endswith("/"):
            keys.add(text)
    return keys


def documented_metrics() -> set[str]:
    return {cell for cell in first_cells(DOCS / "metrics.md") if METRIC.match(cell) and not cell.endswith("/")}


def test_every_metric_is_documented_and_every_documented_one_exists(scored: Scored) -> None:
    made = produced_metrics(scored)
    elsewhere = written_metrics(PACKAGE / "trainer" / "controller.py") | written_metrics(
        PACKAGE / "trainer" / "evaluation.py"
    )
    assert {"rollout/tokens", "reward/<name>/raw_mean", "conductor/weight/<datasource>/<name>", "policy/lr"} <= made
    assert {"eval/<datasource>/accuracy", "conductor/meta_loss"} <= elsewhere
    assert made | elsewhere == documented_metrics()


def test_every_rollout_column_is_documented_and_every_documented_one_exists(scored: Scored) -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", section(DOCS / "metrics.md", "Columns of rollouts/"), re.MULTILINE)
    made = list(dict.fromkeys(template(column) for column in rollout_columns(1, scored)))
    assert documented == made


def test_every_evaluation_column_is_documented_and_every_documented_one_exists() -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", section(DOCS / "metrics.md", "Columns of evaluations/"), re.MULTILINE)
    evaluate = function(PACKAGE / "trainer" / "evaluation.py", "evaluate")
    tables = [node for node in ast.walk(evaluate) if isinstance(node, ast.Dict) and node.keys]
    made = [[ast.literal_eval(key) for key in table.keys if isinstance(key, ast.Constant)] for table in tables]
    assert documented in made


def test_what_a_metric_is_computed_from_is_a_column(scored: Scored) -> None:
    """The last cell of a metric's row names columns; a renamed column must not survive there."""
    columns = {template(column) for column in rollout_columns(1, scored)} | {"right", "score", "id", "<name>"}
    rows = [line for line in (DOCS / "metrics.md").read_text().splitlines() if re.match(r"\| `[a-z]+/", line)]
    rows = [row for row in rows if METRIC.match(row[3:])]
    assert len(rows) > 25
    for row in rows:
        last_cell = row.rstrip("| ").rpartition(" | ")[2]
        quoted = set(re.findall(r"`([^`]+)`", last_cell))
        others = {"dr_grpo", "token_mean", "grpo", "evaluations/", "conductor/"}
        assert {name for name in quoted - others if "." not in name} <= columns, row


# ── links and paths ──


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert linked.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}: no such heading"


def test_paths_in_the_pages_exist() -> None:
    pattern = re.compile(r"(?<![\w./])((?:examples|tests|dockerfile|docs|openrlhf_maestro)/[\w./-]*\w)")
    for page in PAGES:
        for path in pattern.findall(page.read_text(encoding="utf-8")):
            there = (ROOT / path).exists() or any(ROOT.glob(f"{path}*.yaml"))  # a pattern of presets
            # It is not there on purpose, and CONTRIBUTING.md says why.
            assert there or path == "tests/__init__.py", f"{page.name} names {path}"


def test_modules_in_the_concepts_exist() -> None:
    names = re.findall(r"`((?:[a-z]+/)+[a-z_]+\.py)`", (DOCS / "concepts.md").read_text(encoding="utf-8"))
    assert len(names) > 5
    for name in names:
        assert (PACKAGE / name).is_file() or (ROOT / name).is_file(), name


def definitions(path: Path) -> set[str]:
    """Names a module defines: functions, classes with their methods, assignments."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if hasattr(item, "name")}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def mapped() -> list[tuple[str, str]]:
    text = (DOCS / "paper_map.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"`((?:openrlhf_maestro|tests)/[\w/]+\.py)(?:::([\w.]+))?`", text)))


@pytest.mark.parametrize(("path", "name"), mapped())
def test_what_the_paper_map_names_exists(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    if not name:
        return
    assert name in definitions(ROOT / path), f"{path} defines no {name}"
    if path.split("/")[0] == "openrlhf_maestro" and path.split("/")[1] in PLAIN:
        found = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)


def test_every_part_of_the_paper_map_has_code_and_test_or_says_not_yet() -> None:
    text = (DOCS / "paper_map.md").read_text(encoding="utf-8").partition("## Where we depart")[0]
    headers = ("| paper", "| ---", "| what")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(headers)]
    assert len(rows) > 40
    for row in rows:
        assert "not yet" in row or ("`openrlhf_maestro/" in row and "`tests/" in row), row


# ── configurations, commands, options ──


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for _, text in found]


def documented_configurations() -> list[tuple[str, str]]:
    return [(f"{page.name}-{index}", text) for page in WRITTEN for index, text in enumerate(blocks(page, "yaml"))]


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in documented_configurations()])
def test_documented_configurations_are_accepted_and_have_no_dead_option(text: str, tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load(text), dict)
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # for those that extend a shipped one
    file = tmp_path / "config.yaml"
    file.write_text(text)
    served = "serve" in yaml.safe_load(text)
    assert load_config(ServeConfig if served else MaestroConfig, ["--config", str(file)]).notes() == []


def documented_commands() -> list[tuple[str, list[str]]]:
    commands = []
    for page in (ROOT / "README.md", *WRITTEN):
        for text in blocks(page, "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                starts = [at for at, word in enumerate(words) if Path(word).name == "maestro"]
                if starts and len(words) > starts[0] + 1 and words[starts[0] + 1] in CONFIGURED:
                    commands.append((page.name, words[starts[0] + 1 :]))
    return commands


@pytest.mark.parametrize(("page", "words"), documented_commands())
def test_documented_commands_are_accepted(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, *argv = words
    if "--config" in argv and not Path(argv[argv.index("--config") + 1]).is_file():
        assert argv[argv.index("--config") + 1].count("/") == 0, f"{page}: a shipped configuration that does not exist"
        return
    if "--compare" in argv:  # not read as a configuration
        assert len(compare_parser().parse_args(argv).compare) > 1
        return
    config = load_config(CONFIGURED[command], argv)
    assert config.model_dump()


def test_there_are_commands_and_configurations_to_check() -> None:
    assert len(documented_commands()) > 8
    assert len(documented_configurations()) >= 3


def refused_options() -> list[str]:
    text = (DOCS / "gpus.md").read_text(encoding="utf-8").partition("as unknown:")[2].partition("\n\n")[0]
    return [name.replace(".*", ".any") for name in re.findall(r"`([\w.*]+)`", text)]


@pytest.mark.parametrize("name", refused_options())
def test_options_that_are_said_to_be_unknown_are(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)):
        load_config(MaestroConfig, ["--config", str(ROOT / "examples/configs/quick_start.yaml"), f"--{name}", "1"])


def test_options_named_in_the_pages_exist() -> None:
    declared = {known.name for cls in CONFIGURED.values() for known in options(cls)}
    sections = {name.partition(".")[0] for name in declared}
    named = {
        (page.name, name)
        for page in WRITTEN
        for name in re.findall(r"`([a-z]+\.[a-z_.]*[a-z_])(?:: [^`]*)?`", page.read_text(encoding="utf-8"))
        if name.partition(".")[0] in sections and not name.endswith((".jsonl", ".json", ".md", ".safetensors", ".yaml"))
    }
    assert len(named) > 40
    unknown = {(page, name) for page, name in named if name not in declared}
    assert {name for _, name in unknown} <= set(refused_options()), unknown
