"""The documents are correct: their commands, code, settings, links and figures."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.needs import need

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCHEMAS = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}


class _Block(NamedTuple):
    """A fenced block: its position, language and text."""

    place: str
    language: str
    text: str


def _blocks() -> list[_Block]:
    blocks = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\S*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            blocks.append(_Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2]))
    return blocks


BLOCKS = _blocks()


def _of(language: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language == language]


def _commands() -> list[Any]:
    """Every edgekit command in a shell block or a CI example, without its comment."""
    commands = {}
    for block in BLOCKS:
        if block.language in ("sh", "yaml"):
            text = block.text.replace("\\\n", " ")
            for line in re.findall(r"\bedgekit [a-z].*", text):
                for part in re.split(r"&&|\|\||[;>]", line):
                    tokens = shlex.split(part, comments=True)
                    if tokens[:1] == ["edgekit"]:
                        commands.setdefault(" ".join(tokens), pytest.param(tokens[1:], id=f"{block.place} {tokens[1]}"))
    return list(commands.values())


@pytest.mark.parametrize("arguments", _commands())
def test_every_command_parses(arguments: list[str]) -> None:
    """Each option exists and accepts the value, according to the command's parser."""
    import typer
    from edgekit.toolkit.cli import app

    group: Any = typer.main.get_command(app)
    group.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def test_blocks_name_their_language() -> None:
    """A block without a language would not be checked."""
    languages = {block.place: block.language for block in BLOCKS}
    checked = {"sh", "python", "toml", "yaml", "text"}
    assert {place: language for place, language in languages.items() if language not in checked} == {}


@pytest.mark.parametrize("block", _of("python"))
def test_python_blocks_use_existing_names(block: _Block) -> None:
    """Each block compiles, and the names that it uses from edgekit exist; test_docs_python.py runs it."""
    import edgekit

    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edgekit":
            assert hasattr(edgekit, node.attr), f"{block.place}: edgekit.{node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekit"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), f"{block.place}: {node.module}"


@pytest.mark.parametrize("block", _of("toml"))
def test_recipes_are_valid(block: _Block) -> None:
    """A TOML block is a recipe that `train --recipe` accepts."""
    import tomllib
    from edgekit.toolkit.training.recipe import Recipe

    Recipe.from_dict(tomllib.loads(block.text))


@pytest.mark.parametrize("block", _of("yaml"))
def test_ci_examples_are_valid(block: _Block, tmp_path: Path) -> None:
    """CI examples match the schema that the CI system publishes."""
    system = "github" if "runs-on:" in block.text else "gitlab"
    try:
        import check_jsonschema  # noqa: F401
    except ModuleNotFoundError:
        need(False, "the packages of the documentation", "make docs", "EDGEKIT_DOCS")
    path = tmp_path / f"{system}.yml"
    path.write_text(block.text)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[system], str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    """Relative links and pictures are files in the repository; the site's strict build checks the anchors."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if not re.match(r"https?://|\w+:", link):
            assert (page.parent / link).exists(), link


def test_documents_name_every_entry_of_the_registries() -> None:
    """Formats, runtimes, devices, networks, targets, named data sets, recipes."""
    from edgekit.deploy.devices.device import DEVICES
    from edgekit.deploy.runtimes.runtime import RUNTIMES, formats
    from edgekit.export.formats import FORMATS
    from edgekit.models.network import MODELS
    from edgekit.toolkit.dataset_names import DATASETS
    from edgekit.toolkit.quantize.targets import TARGETS
    from edgekit.toolkit.training.recipe import shipped

    text = "".join(page.read_text() for page in PAGES)
    for registry in (FORMATS, RUNTIMES, formats(RUNTIMES), DEVICES, MODELS, TARGETS, DATASETS, shipped()):
        for name in registry:
            assert f"`{name}`" in text, name


def _messages() -> list[str]:
    """Every string in the source, with … in place of inserted values."""
    texts = []
    for folder in ("deploy", "export", "models", "toolkit"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
                    texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts))
    return texts


def test_symptoms_are_messages_of_the_program() -> None:
    """A heading in quotes is an error message: one string of the program contains all its parts between …."""
    messages = _messages()
    page = (ROOT / "docs/troubleshooting.md").read_text()
    for symptom in re.findall(r'^### "(.+?)"', page, re.MULTILINE):
        parts = [part.strip(" ,;") for part in symptom.split("…")]
        assert any(all(part in message for part in parts) for message in messages), symptom


def test_every_decision_has_a_unique_number() -> None:
    """Numbers run from 1 without gaps or repeats, and each anchor has its decision's number."""
    pages = (ROOT / "docs/decisions").glob("*.md")
    heads = [head for page in pages for head in re.findall(r"^## (\d+)\. .+ \{ #d(\d+) \}$", page.read_text(), re.M)]
    assert all(number == anchor for number, anchor in heads)
    assert sorted(int(number) for number, _ in heads) == list(range(1, len(heads) + 1))


def test_design_lists_every_folder() -> None:
    """DESIGN.md lists all existing folders and no others."""
    listed = set(
        re.findall(r"^\| `((?:deploy|export|models|toolkit)[\w/]*)/` \|", (ROOT / "DESIGN.md").read_text(), re.M)
    )
    top = ("deploy", "export", "models", "toolkit")
    paths = [path for folder in top for path in (ROOT / folder).glob("*/__init__.py")]
    assert listed == {str(path.parent.relative_to(ROOT)) for path in paths} | set(top)


def test_every_error_is_in_the_tree_of_its_module() -> None:
    """The tree in the docstring lists exactly the errors that are defined."""
    from edgekit.deploy import errors

    drawn = set(re.findall(r"\b(\w+Error)\b", errors.__doc__ or ""))
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert drawn == defined


def test_version_matches_the_changelog() -> None:
    """The package, its metadata and the changelog agree."""
    import edgekit
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == edgekit.__version__
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_contain_no_url() -> None:
    """They work with any package index."""
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert re.search(r"^torch==2\.14\.1$", text, re.MULTILINE)


def test_security_states_the_actual_limits() -> None:
    """The README links SECURITY.md, and its figures match the code."""
    from edgekit.deploy import arrays
    from edgekit.deploy.manifest import check_name, manifest_id
    from edgekit.deploy.preprocess import MAX_PICTURE

    text = " ".join((ROOT / "SECURITY.md").read_text().split())
    assert "(SECURITY.md)" in README
    assert f"{arrays._SMALL_BYTES >> 20} MB or {arrays._MAX_RATIO} times the file's size" in text
    assert f"{MAX_PICTURE // 1_000_000} million pixels" in text
    assert f"{4 * len(manifest_id(b''))} bits" in text
    check_name("letters.digits_and+-0")
