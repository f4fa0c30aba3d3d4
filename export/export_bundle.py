"""Export: convert a torch bundle to another format; a result that is not the same model is refused."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..deploy.bundle import Bundle, create
from ..deploy.errors import BundleError, ParityError
from ..deploy.parity import Parity, compare, replay
from ..deploy.registry import choose, resolve
from ..deploy.session import open_session
from .formats import FORMATS, Format

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        dynamic_batch: let the model take any number of images at once; otherwise exactly one.
        opset: ONNX operator set; None is the lowest that suffices (see onnx.py).
        cross_check: also export with the other of torch's two ONNX exporters, and compare the results.
        uint8_input: the model takes pixels, uint8 [n, c, h, w], and normalizes them itself (see pixels.py).
    """

    dynamic_batch: bool = False
    opset: int | None = None
    cross_check: bool = False
    uint8_input: bool = False


def export_bundle(bundle: Bundle, format: str, out: Path, options: Options | None = None) -> Bundle:
    """Write `bundle`'s network in another format to the new bundle `out`, if it passes the parity gate.

    The gate runs the exported file on the golden images at batch 1 and batch 3. The logits must equal those recorded
    by the source, up to float32 rounding, with the same top-1 class for every image.

    Raises:
        ParityError: the exported file is not the same model; nothing is left behind.
        BundleError: the bundle contains no torch network, or an option does not apply.
    """
    from .eager import load_module

    options = options or Options()
    entry = choose(FORMATS, format, "format", BundleError)
    _check_options(format, entry, options)
    network = load_module(bundle)
    check_source(bundle, network)
    source = bundle.manifest
    batch = None if options.dynamic_batch else 1
    if source.input.batch is not None and batch is None:
        raise BundleError(f"{bundle.path} takes exactly {source.input.batch} image(s)", fix="leave out --dynamic-batch")
    manifest = replace(
        source,
        format=format,
        precision="fp32",
        model=f"model{entry.suffix}",
        input=replace(source.input, batch=batch),
        architecture={},
        lineage=bundle.ancestry(),
    )
    golden = bundle.golden()
    written, kept = manifest, golden
    if options.uint8_input:
        from .pixels import golden_pixels, pixels_of

        written = replace(manifest, preprocess=pixels_of(source.preprocess))
        kept = golden_pixels(golden, source.preprocess)
    with create(out) as draft:
        draft.add_golden(kept)
        draft.add_splits(bundle.splits())
        draft.add_fingerprints(bundle.fingerprints())
        details = resolve(entry.export, __package__ or "")(
            network, golden.tensors, draft.folder / manifest.model, options, manifest
        )
        draft.finish(written, entry.packages)
        parity = gate(Bundle.open(draft.folder))
        details = {**details, "options": {name: getattr(options, name) for name in entry.options}}
        draft.finish(replace(written, details={"export": details, "parity": asdict(parity)}), entry.packages)
    return Bundle.open(out)


def gate(exported: Bundle) -> Parity:
    """Compare an exported bundle with its golden samples at batch 1 and batch 3.

    Returns:
        The parity of the batch size with the larger difference.

    Raises:
        ParityError: the exported file is not the same model.
    """
    session = open_session(exported)
    worst: Parity | None = None
    for size in (1, 3):
        try:
            parity = replay(exported, lambda tensors, size=size: _in_parts(session.run, tensors, size))
        except Exception as error:  # runtimes raise arbitrary errors for an unsupported shape
            raise ParityError(
                f"the {exported.manifest.format} file does not run at batch {size}: {error}",
                fix="nothing was kept; leave out --dynamic-batch, or report the network",
            ) from error
        if not parity.exact or not parity.same_input:
            raise ParityError(
                f"the {exported.manifest.format} file is not the same model at batch {size}: logits differ by up to "
                f"{parity.logits_max_abs:.3g} (largest {parity.scale:.3g}), the top-1 class agrees on "
                f"{parity.top1_agreement:.0%} of the golden images",
                fix="nothing was kept; try another --format, another --opset, or report the network",
            )
        worst = parity if worst is None or parity.logits_max_abs > worst.logits_max_abs else worst
    session.close()
    assert worst is not None  # noqa: S101 # two batches were compared
    return worst


def check_source(bundle: Bundle, network: "nn.Module") -> None:
    """Refuse a source whose network does not reproduce its golden samples.

    Raises:
        ParityError: the logits differ from the recorded ones.
    """
    import torch

    golden = bundle.golden()
    with torch.inference_mode():
        size = bundle.manifest.input.batch or len(golden.tensors)
        logits = _in_parts(lambda part: network(torch.from_numpy(part)).numpy(), golden.tensors, size)
    parity = compare(golden, logits)
    if not parity.exact:
        raise ParityError(
            f"{bundle.path} does not reproduce its golden samples: logits differ by up to {parity.logits_max_abs:.3g}",
            fix="train or import it again with this version of torch",
        )


def example_input(images: np.ndarray, options: Options) -> np.ndarray:
    """The input for tracing a network: one image, or two for a dynamic batch (torch freezes a batch of one)."""
    return np.repeat(images[:1], 2, axis=0) if options.dynamic_batch else images[:1]


def _in_parts(run: Callable[[np.ndarray], np.ndarray], tensors: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([run(tensors[start : start + size]) for start in range(0, len(tensors), size)])


def _check_options(name: str, entry: Format, options: Options) -> None:
    default: Mapping[str, object] = asdict(Options())
    for key, value in asdict(options).items():
        if value != default[key] and key not in entry.options:
            raise BundleError(
                f"--{key.replace('_', '-')} does not apply to --format {name}", fix="leave it out, or --format onnx"
            )
