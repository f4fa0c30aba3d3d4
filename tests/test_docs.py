"""What the documents say is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _commands() -> list[str]:
    """Every edgekit command in the README's shell blocks, without its comment."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [part.split("#")[0].strip() for line in text.splitlines() for part in line.split("&&")]
    return sorted({line for line in lines if line.startswith("edgekit ")})


@pytest.mark.parametrize("command", _commands())
def test_readme_commands_exist(command: str) -> None:
    """Each command of the README is one, and each of its options is in that command's help."""
    words = command.split()
    code = "from edgekit.toolkit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, words[1], "--help"], capture_output=True, text=True, check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin"},
    )  # fmt: skip
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in done.stdout, f"{command}: {option}"


def test_readme_names_every_entry_of_the_registries() -> None:
    """Formats, runtimes, devices, networks, targets, named data sets, recipes."""
    from edgekit.deploy.devices.device import DEVICES
    from edgekit.deploy.session import RUNTIMES
    from edgekit.export.export_bundle import FORMATS
    from edgekit.models.network import MODELS
    from edgekit.toolkit.datasets import DATASETS
    from edgekit.toolkit.quantize.targets import TARGETS
    from edgekit.toolkit.training.recipe import shipped

    for registry in (FORMATS, RUNTIMES, DEVICES, MODELS, TARGETS, DATASETS, shipped()):
        for name in registry:
            assert f"`{name}`" in README, name


def test_every_error_is_in_the_tree_of_its_module() -> None:
    """The tree that is drawn is the tree that is."""
    from edgekit.deploy import errors

    drawn = set(re.findall(r"\b(\w+Error)\b", errors.__doc__ or ""))
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert drawn == defined


def test_version_is_the_changelogs() -> None:
    """The package, its metadata and the change log agree."""
    import edgekit
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == edgekit.__version__
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_name_no_address() -> None:
    """Anyone's index will do."""
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert re.search(r"^torch==2\.14\.1$", text, re.MULTILINE)


def test_security_names_the_bounds_that_hold() -> None:
    """SECURITY.md is linked, and its figures are those of the code."""
    from edgekit.deploy import arrays
    from edgekit.deploy.manifest import check_name, manifest_id
    from edgekit.deploy.preprocess import MAX_PICTURE

    text = " ".join((ROOT / "SECURITY.md").read_text().split())
    assert "(SECURITY.md)" in README
    assert f"{arrays._SMALL_BYTES >> 20} MB or {arrays._MAX_RATIO} times the file's size" in text
    assert f"{MAX_PICTURE // 1_000_000} million pixels" in text
    assert f"{4 * len(manifest_id(b''))} bits" in text
    check_name("letters.digits_and+-0")
