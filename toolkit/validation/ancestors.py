"""The models that a candidate was made from, if they are available and the device can run them."""

import logging
from collections.abc import Sequence

from ...deploy.bundle import Bundle
from ...deploy.devices.device import how_to_install
from ...deploy.errors import BundleError, DeviceError
from ...deploy.runtimes.runtime import all_runtimes
from ..workspace import RUNS, find

_log = logging.getLogger(__name__)


def with_ancestors(bundles: Sequence[Bundle], baseline: Bundle | None, formats: set[str], device: str) -> list[Bundle]:
    """The baseline, or without one the ancestors of the candidates, then the candidates; each bundle once.

    Args:
        formats: the formats that run on `device`.

    Raises:
        BundleError: the bundles have different labels.
        DeviceError: a named bundle does not run on `device`.
    """
    named = [*bundles, *([baseline] if baseline else [])]
    if len({bundle.manifest.labels for bundle in named}) != 1:
        raise BundleError("the bundles have different labels", fix="validate models of the same classes together")
    for bundle in named:
        if bundle.manifest.format not in formats:
            opening = [runtime.name for runtime in all_runtimes() if bundle.manifest.format in runtime.formats]
            how = how_to_install(device, opening[0]) if opening else ""
            raise DeviceError(
                f"{bundle.path} is {bundle.manifest.format}, which {device} cannot run: it runs "
                f"{', '.join(sorted(formats)) or 'nothing'}",
                fix=f"{how}; or validate its ONNX export" if how else "validate its ONNX export",
            )
    if baseline is not None:
        return list({bundle.id: bundle for bundle in (baseline, *bundles)}.values())
    ancestors = []
    for bundle in bundles:
        for entry in bundle.manifest.lineage:
            ancestor = find(entry["id"], bundle.path.parent, RUNS)
            if ancestor is None:
                _log.info(
                    f"{entry['name']} ({entry['format']} {entry['precision']}) was not found, so it is not compared"
                )
            elif ancestor.manifest.labels != bundle.manifest.labels:
                _log.info(f"{ancestor.path} has different labels, so it is not compared")
            elif ancestor.manifest.format not in formats:
                _log.info(f"{ancestor.path} needs a runtime that {device} does not have, so it is not compared")
            else:
                ancestors.append(ancestor)
    return list({bundle.id: bundle for bundle in (*ancestors, *bundles)}.values())
