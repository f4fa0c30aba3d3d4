"""Generate the pictures and outputs in the README and on the site from a real run of the four commands.

`python docs/pictures.py` runs them in a temporary folder, writes docs/images, and puts their output into README.md
between its markers. It requires Chromium for the pictures of the report's page.
"""

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs/images"
COLUMNS = 112
COMMANDS = {
    "train": ["train"],
    "export": ["export", "--format", "onnx"],
    "quantize": ["quantize"],
    "validate": ["validate"],
}
# Rich's SVG loads its font from another host, which a picture in a page cannot do.
_FONT_FACES = re.compile(r"@font-face \{.*?\}", re.DOTALL)
_WIDTH, _HEIGHT = 1280, 1080


def run(arguments: list[str], folder: Path) -> tuple[str, str]:
    """Run a command; returns (stdout as on a colour terminal, stderr as in a pipe)."""
    terminal, stdout = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "LINES": "60"}
    with tempfile.TemporaryFile("w+") as stderr:
        command = [sys.executable, "-m", "edgekit", *arguments]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=stderr)
        os.close(stdout)
        chunks = []
        try:
            while chunk := os.read(terminal, 1 << 16):
                chunks.append(chunk)
        except OSError:  # Linux reports EIO once the other side has closed
            pass
        os.close(terminal)
        if code := process.wait():
            sys.exit(f"edgekit {' '.join(arguments)} ended with {code}")
        stderr.seek(0)
        return b"".join(chunks).decode().replace("\r\n", "\n"), stderr.read()


def draw(command: str, printed: str, name: str) -> None:
    """Write the output of a command as SVG, for light and dark pages."""
    for scheme, theme in (("light", DEFAULT_TERMINAL_THEME), ("dark", SVG_EXPORT_THEME)):
        console = Console(record=True, width=COLUMNS, file=io.StringIO())
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(printed), soft_wrap=True)
        svg = console.export_svg(title=command, theme=theme)
        svg = _FONT_FACES.sub("", svg).replace("Fira Code", "ui-monospace, Menlo, Consolas")
        text = "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
        (IMAGES / f"{name}-{scheme}.svg").write_text(text)


def photograph(page_file: Path) -> None:
    """Write pictures of the top of the report's page, light and dark, with few colours so that the files are small."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            image.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"report-{scheme}.png", optimize=True)
        browser.close()


def main() -> None:
    """Run the commands and replace every picture and output."""
    readme = (ROOT / "README.md").read_text()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, arguments in COMMANDS.items():
            stdout, stderr = run(arguments, folder)
            text = (stderr + Text.from_ansi(stdout).plain).strip().replace(f"{folder}/", "")
            block = f"<!-- output: {name} -->\n```text\n{text}\n```\n<!-- end -->"
            readme = re.sub(rf"<!-- output: {name} -->\n.*?<!-- end -->", lambda _, b=block: b, readme, flags=re.DOTALL)
        draw("edgekit validate", stdout.strip(), "validate")
        photograph(next((folder / "runs").glob("*.report/report.html")))
    (ROOT / "README.md").write_text(readme)


if __name__ == "__main__":
    main()
