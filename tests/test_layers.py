"""Import rules between the folders, the package list, and what the command line may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parent.parent
FOLDERS = ("deploy", "models", "export", "toolkit")
MAY_IMPORT = {
    "deploy": set(),
    "models": set(),
    "export": {"models", "deploy"},
    "toolkit": {"models", "deploy", "export"},
}
# folder of toolkit -> the other folders that it may import; commands may import all, and nothing imports commands
SUBFOLDERS = {
    "analysis": set(),
    "building": {"quantize"},
    "doctor": {"analysis", "quantize"},
    "importing": set(),
    "optimizing": {"analysis", "quantize", "report", "validation"},
    "packing": {"analysis", "validation"},
    "quantize": {"analysis", "validation"},
    "report": {"analysis"},
    "qat": {"analysis", "quantize", "training"},
    "training": {"analysis"},
    "validation": {"analysis", "report"},
}
DEVICE_PACKAGES = {"numpy", "PIL"}
# a runtime's library, imported in the runtime's file only; TensorRT has several names, so importlib loads it
RUNTIME_PACKAGES = {
    "runtimes": {"ai_edge_litert", "executorch", "ncnn", "onnxruntime", "openvino", "torch"}, "engine": {"cuda"},
}  # fmt: skip
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "ncnn", "executorch", "numpy", "PIL",
         "matplotlib", "lightning_fabric", "cuda", "tensorrt", "tensorrt_rtx_bindings")  # fmt: skip
COMMANDS = ("train", "import", "export", "quantize", "optimize", "build", "validate", "predict", "inspect", "doctor",
            "pack", "provision", "report", "runs", "clean", "demo")  # fmt: skip


def _modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> list[tuple[str, str]]:
    """(folder of EdgeKit, "") or ("", package) for each import anywhere in a file."""
    package = path.relative_to(ROOT).parent.parts
    imports = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imports += [("", alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imports.append(("", (node.module or "").partition(".")[0]))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module or node.names[0].name).split("."))
            imports.append((target[0], ""))
    return imports


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_is_below_them(folder: str) -> None:
    """deploy and models import no other folder, export imports both, and nothing imports toolkit."""
    for path in _modules(folder):
        for target, _ in _imports(path):
            assert target in {"", folder, "__version__", *MAY_IMPORT[folder]}, f"{path} imports {target}"


def test_deploy_imports_only_packages_of_the_device() -> None:
    """The device install has numpy, Pillow and, for each session's file, its runtime."""
    for path in _modules("deploy"):
        outside = {name for _, name in _imports(path) if name} - set(sys.stdlib_module_names)
        allowed = DEVICE_PACKAGES | RUNTIME_PACKAGES.get(path.parent.name, set())
        assert outside <= allowed, f"{path} imports {outside - allowed}"


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported_modules() -> dict[str, set[str]]:
    """Module -> the modules of EdgeKit that it imports, anywhere in its file."""
    paths = {_dotted(path): path for folder in FOLDERS for path in _modules(folder)}
    imported: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        package = path.relative_to(ROOT).parent.parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join((*package[: len(package) - node.level + 1], *(node.module or "").split("."))).strip(".")
                imported[name] |= {full if (full := f"{base}.{alias.name}") in paths else base for alias in node.names}
        imported[name] &= paths.keys()
    return imported


def test_imports_have_no_cycles() -> None:
    """Not even inside a function: code that needs a cyclic import is in the wrong place."""
    imported = _imported_modules()
    for start in imported:
        reached, waiting = set(), list(imported[start])
        while waiting:
            if (name := waiting.pop()) not in reached:
                reached.add(name)
                waiting += imported[name]
        assert start not in reached, f"{start} is in an import cycle"


def test_subfolders_import_only_what_is_below_them() -> None:
    """The folders of toolkit, as listed in DESIGN.md; analysis imports nothing else of toolkit."""
    for name, targets in _imported_modules().items():
        folder = name.split(".")[1] if name.startswith("toolkit.") and name.count(".") > 1 else ""
        for target in targets:
            other = target.split(".")[1] if target.startswith("toolkit.") and target.count(".") > 1 else ""
            if folder in SUBFOLDERS and other and other != folder:
                assert other in SUBFOLDERS[folder], f"{name} imports {target}"
            if folder == "analysis":
                assert target.startswith(("deploy", "toolkit.analysis")), f"{name} imports {target}"
            if other == "commands":
                assert folder == "commands" or name == "toolkit.cli", f"{name} imports {target}"


def test_every_folder_describes_its_contents() -> None:
    """Each __init__.py has a docstring and defines no functions or classes."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("__init__.py"):
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), path
            assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body), path


# Modules of deploy that import torch, for torch's formats.
_TORCH = ("torchscript", "exported_program", "torch_module", "program_archive", "executorch_session")


def test_deploy_runs_without_torch_typer_and_onnx() -> None:
    """Every module of deploy except torch's sessions can be imported while those packages are blocked."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in _modules("deploy")]
    names = [f"edgekit.{name}" for name in names if not name.endswith(_TORCH)]
    code = (
        "import sys, importlib\n"
        "for name in ('torch', 'typer', 'onnx', 'onnxruntime', 'openvino', 'ai_edge_litert', 'rich', 'cuda', "
        "'tensorrt', 'tensorrt_rtx_bindings'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    """--help of every command runs without torch, onnx, onnxruntime or numpy."""
    code = (
        "import sys\nfrom edgekit.toolkit.cli import main\n"
        f"sys.argv = ['edgekit', *{command.split()!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert "Usage:" in done.stdout


def test_the_list_of_commands_loads_only_typer() -> None:
    """`edgekit --help` costs little more than `import typer`: neither rich nor its Markdown packages are loaded."""
    code = (
        "import sys, typer\nbefore = set(sys.modules)\n"
        "from edgekit.toolkit.cli import main\nsys.argv = ['edgekit', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print('LOADED', {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] in ("LOADED {'edgekit', 'typer'}", "LOADED {'typer', 'edgekit'}")


def test_every_commands_help_is_tested() -> None:
    """COMMANDS lists every command."""
    from edgekit.toolkit.cli import app

    names = {info.name for info in app.registered_commands if info.callback}
    assert names == set(COMMANDS)


def test_package_list_matches_the_folders() -> None:
    """A sub-package that pyproject.toml does not list would be missing from the wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {
        path.parent
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".toml", ".npz")
    }
    expected = {".".join(("edgekit", *path.relative_to(ROOT).parts)) for path in folders}
    assert listed == {"edgekit", *expected}


def test_root_contains_no_stray_modules() -> None:
    """A .py file in the root would be shipped in the package."""
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]


def test_public_names_resolve() -> None:
    """Every name in __all__ exists, and every public name is in __all__."""
    import edgekit

    assert sorted(edgekit.__all__) == edgekit.__all__ == sorted(edgekit._PUBLIC)
    assert all(getattr(edgekit, name) for name in edgekit.__all__)


@pytest.mark.parametrize("registry", ["RUNTIMES", "FORMATS", "DEVICES"])
def test_registries_match_their_files(registry: str) -> None:
    """Each entry names an existing object, and each file has an entry, except those shared by several formats."""
    from edgekit.deploy.devices.device import DEVICES
    from edgekit.deploy.registry import resolve
    from edgekit.deploy.runtimes.runtime import PLANTED, RUNTIMES
    from edgekit.export.formats import FORMATS

    entries, package, folder, shared = {
        "RUNTIMES": (
            {**RUNTIMES, **PLANTED}, "edgekit.deploy.runtimes", ROOT / "deploy/runtimes",
            {"runtime", "torchscript", "exported_program", "torch_module", "program_archive",
             "executorch_session", "executorch_program"},
        ),
        "FORMATS": (
            {k: v.export for k, v in FORMATS.items()}, "edgekit.export", ROOT / "export",
            {"eager", "onnx_file", "pixels", "export_bundle", "formats", "litert_child", "litert_packages"},
        ),
        "DEVICES": (
            {k: v.opens for k, v in DEVICES.items()}, "edgekit.deploy.devices", ROOT / "deploy/devices",
            {"device", "transport"},
        ),
    }[registry]  # fmt: skip
    for reference in entries.values():
        assert resolve(reference, package)
    modules = {reference.partition(":")[0].rpartition(".")[2] for reference in entries.values()} | shared
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} <= modules


def test_each_runtime_is_declared_under_its_own_name() -> None:
    """Its file declares which formats it opens; no declaration imports a runtime's package."""
    from edgekit.deploy.runtimes.runtime import PLANTED, RUNTIMES, all_runtimes

    declared = all_runtimes(planted=True)
    assert [runtime.name for runtime in declared] == [*RUNTIMES, *PLANTED]
    assert all(runtime.formats for runtime in declared)
    code = (
        "import sys\nfrom edgekit.deploy.runtimes.runtime import all_runtimes\nall_runtimes(planted=True)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules and name not in ('numpy', 'PIL')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


MAX_FUNCTION, MAX_MODULE, MAX_PARAMETERS = 60, 400, 8


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_and_modules_are_short(folder: str) -> None:
    """A command has one parameter per option, so its declarations are not counted."""
    for path in _modules(folder):
        text = path.read_text()
        assert len(text.splitlines()) <= MAX_MODULE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                is_command = path.parent.name == "commands" and node.name == "command"
                lines = (node.end_lineno or 0) - (node.body[0].lineno if is_command else node.lineno) + 1
                assert lines <= MAX_FUNCTION, f"{path}: {node.name} has {lines} lines"
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                assert is_command or count <= MAX_PARAMETERS, f"{path}: {node.name} has {count} parameters"
