"""Completion of names on the command line. Imports nothing heavy, because it runs at a key press."""

from collections.abc import Iterable

from ...deploy.devices.device import DEVICES
from ...deploy.visible import visible
from ...export.formats import FORMATS
from ...models.network import MODELS
from ..dataset_names import DATASETS
from ..quantize.methods import AUTO, METHODS
from ..quantize.targets import TARGETS
from ..runs import folders, read_run


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def complete_bundles(incomplete: str) -> list[str]:
    """Paths of the bundles in runs/, without names that a terminal would not show unchanged."""
    runs = [run for path in folders() if (run := read_run(path)) is not None and run.kind in ("bundle", "rejected")]
    return _starting((text for run in runs if visible(text := str(run.path)) == text), incomplete)


def complete_runs(incomplete: str) -> list[str]:
    """Names of everything in runs/ that `clean` can remove."""
    names = (path.name for path in folders() if read_run(path) is not None)
    return _starting((name for name in names if visible(name) == name), incomplete)


def complete_datasets(incomplete: str) -> list[str]:
    """Named data sets."""
    return _starting(DATASETS, incomplete)


def complete_networks(incomplete: str) -> list[str]:
    """EdgeKit's networks, and the prefixes for networks of other libraries."""
    return _starting((*MODELS, "torchvision:", "timm:"), incomplete)


def complete_targets(incomplete: str) -> list[str]:
    """Quantization targets."""
    return _starting(TARGETS, incomplete)


def complete_methods(incomplete: str) -> list[str]:
    """Calibration methods."""
    return _starting((AUTO, *METHODS), incomplete)


def complete_formats(incomplete: str) -> list[str]:
    """Export formats."""
    return _starting(FORMATS, incomplete)


def complete_devices(incomplete: str) -> list[str]:
    """Devices, as names or as the beginning of an address: "ssh://"."""
    kinds = ((name, kind.address) for name, kind in DEVICES.items())
    return _starting((f"{name}://" if "://" in address else name for name, address in kinds), incomplete)
