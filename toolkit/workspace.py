"""runs/: where bundles go, and the newest one that a command can take."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ..deploy.bundle import MANIFEST, Bundle, Manifest, manifest_id
from ..deploy.errors import BundleError
from .console import say

RUNS = Path("runs")
REJECTED = ".rejected"
_NUMBERED = re.compile(r"(\d+)-")


def new_path(name: str, runs: Path = RUNS) -> Path:
    """A path for a new bundle: the next number, then `name` in characters that every file system takes."""
    numbers = [int(match[1]) for entry in _entries(runs) if (match := _NUMBERED.match(entry.name))]
    safe = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "model"
    return runs / f"{max(numbers, default=0) + 1:03d}-{safe}"


def newest(accept: Callable[[Manifest], bool], wanted: str, make: str, runs: Path = RUNS) -> Bundle:
    """The newest bundle in `runs` that `accept` takes; says which.

    Args:
        wanted: what kind of bundle it is, for the message.
        make: the command that makes one.

    Raises:
        BundleError: there is none.
    """
    fitting = [(manifest.created, path) for path, manifest in _manifests(runs) if accept(manifest)]
    if not fitting:
        raise BundleError(f"there is no {wanted} in {runs}/", fix=f"run: {make}, or pass a bundle's folder")
    path = max(fitting)[1]
    say(f"taking {path}")
    return Bundle.open(path)


def given_or_newest(path: Path | None, accept: Callable[[Manifest], bool], wanted: str, make: str) -> Bundle:
    """The bundle that was named, else the newest fitting one.

    Raises:
        BundleError: the named bundle is not of the kind that is wanted, or there is none.
    """
    if path is None:
        return newest(accept, wanted, make)
    bundle = Bundle.open(path)
    if not accept(bundle.manifest):
        kind = f"{bundle.manifest.format} {bundle.manifest.precision}"
        raise BundleError(f"{path} is {kind}; needed: {wanted}", fix=f"run: {make}")
    return bundle


def find(bundle_id: str, *places: Path) -> Bundle | None:
    """The bundle with this id among the folders in `places`, None when it is not there."""
    for place in places:
        for path, _ in _manifests(place):
            if manifest_id((path / MANIFEST).read_bytes()) == bundle_id:
                return Bundle.open(path)
    return None


def derived(bundle_id: str, *places: Path) -> list[Bundle]:
    """The bundles that were made directly from the one with this id, the newest first."""
    found = {}
    for place in places:
        for path, manifest in _manifests(place):
            if manifest.lineage and manifest.lineage[-1]["id"] == bundle_id:
                found[path.resolve()] = (manifest.created, path)
    return [Bundle.open(path) for _, path in sorted(found.values(), reverse=True)]


def _manifests(runs: Path) -> Iterator[tuple[Path, Manifest]]:
    """Every bundle's folder and manifest; what cannot be read is passed over, as it is nothing that a command takes."""
    for path in _entries(runs):
        source = path / MANIFEST
        if path.name.endswith(REJECTED) or not source.is_file():
            continue
        try:
            manifest = Manifest.from_json(source.read_bytes(), source)
        except (BundleError, OSError) as error:
            say(f"passing over {path}: {error}")
            continue
        yield path, manifest


def _entries(runs: Path) -> list[Path]:
    return sorted(entry for entry in runs.iterdir() if not entry.name.startswith(".")) if runs.is_dir() else []
