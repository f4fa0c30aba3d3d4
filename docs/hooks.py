"""Generate parts of the site from the program: every command's options, the public API, the list of decisions."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekit
import typer
from edgekit.toolkit.cli import app

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent


def commands() -> str:
    """Markdown of every command: its help, usage, arguments and options."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="edgekit")
    return "\n\n".join(_command(group.commands[name], context) for name in group.list_commands(context))


def _command(command: Any, parent: typer.Context) -> str:
    context = typer.Context(command, info_name=command.name, parent=parent)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record and "--help" not in parameter.opts:
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or default
            panels.setdefault(panel, []).append(
                f"| `{_cell(record[0])}` | {_cell(record[1]).replace('[', chr(92) + '[')} |"
            )
    tables = [f"| {name} | |\n|---|---|\n" + "\n".join(rows) for name, rows in panels.items()]
    help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or "").strip()
    return "\n\n".join([f"## edgekit {command.name}", help, f"```text\n{usage}\n```", *tables])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api() -> str:
    """Directives of mkdocstrings for everything that `import edgekit` offers: functions first, then classes."""
    names = sorted(edgekit.__all__, key=lambda name: (name[0].isupper(), name))
    return "\n\n".join(f"::: edgekit{edgekit._PUBLIC[name].replace(':', '.')}" for name in names)


def decisions() -> str:
    """A table of all decisions in the order of their numbers, read from the headings of the pages beside it."""
    rows = {}
    for page in sorted((ROOT / "docs/decisions").glob("*.md")):
        for number, title, anchor in re.findall(r"^## (\d+)\. (.+?) \{ #(d\d+) \}$", page.read_text(), re.MULTILINE):
            rows[int(number)] = f"| [{number}]({page.name}#{anchor}) | {title} |"
    return "| | |\n|---|---|\n" + "\n".join(rows[number] for number in sorted(rows))


def on_startup(**_: object) -> None:
    """Link the package under its own name for mkdocstrings; the checkout's folder may have another name."""
    package = ROOT / "build/package/edgekit"
    package.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "deploy", "export", "models", "toolkit"):
        if not (package / name).is_symlink():
            (package / name).symlink_to(ROOT / name)


GENERATED: dict[str, Callable[[], str]] = {"commands": commands, "api": api, "decisions": decisions}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace `<!-- generated: NAME -->` with the generated text."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATED[match[1]](), markdown)


_EXTERNAL = re.compile(r'<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|srcset|href)="(?:https?:)?//[^"]*"')


def on_post_page(output: str, page: "Page", **_: object) -> None:
    """Refuse a page that would request something from another host."""
    if match := _EXTERNAL.search(output):
        raise ValueError(f"{page.file.src_path} requests something from another host: {match[0]}")
