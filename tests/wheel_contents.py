"""Compare a wheel's files with those that git tracks in the packages: none missing, none stray."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("deploy", "export", "models", "toolkit")

if __name__ == "__main__":
    tracked = subprocess.run(
        ["git", "ls-files", *FOLDERS, "__init__.py", "__main__.py", "py.typed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = {f"edgekit/{name}" for name in tracked.stdout.split()}
    fetched = "deploy/devices/browser/ort-web"
    if (ROOT / fetched).is_dir():
        names = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
        expected |= {f"edgekit/{fetched}/{name}" for name in names}
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    if expected != packed:
        sys.exit(f"missing from the wheel: {sorted(expected - packed)}\nunexpected: {sorted(packed - expected)}")
    print(f"wheel: {len(packed)} files, the same as in the checkout")
