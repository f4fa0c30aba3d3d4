"""Forecast what the candidates of this machine will bring for a network, in about half a minute and without images.

The time of a quantized network depends on its graph and types, not on the ranges of its activations. So the files are
made with the ranges of one golden sample, and only their time means something.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ...deploy.bundle import Bundle, Golden, create
from ...deploy.devices.device import open_device
from ...deploy.errors import BundleError, DeviceError, EdgeKitError
from ...deploy.files import scratch_folder
from ...deploy.manifest import Manifest
from ...deploy.measuring.plan import Candidate
from ...deploy.progress import Progress, silent
from ..analysis.forecast import Forecast, ForecastEntry, conclude_forecast, time_of
from ..analysis.search import candidate_name
from ..quantize.targets import TARGETS
from .forecast_child import Answer, Entry, Job
from .space import SOURCE, Contender, Variant, contenders_for, examine, variants_for
from .variants import exported, network_of, onnx_of

if TYPE_CHECKING:
    import onnx

# Seconds for timing all candidates, after they were opened.
SECONDS = 15.0
# A candidate in float32 is timed so many times as long as another one, since all speed-ups are relative to one of them.
_FLOAT_SHARE = 3.0
# The arguments of Python that start the process for timing.
_CHILD = ("-m", f"{__package__}.forecast_child")

# (seconds per call of the reference, of the candidate) for each pair of blocks
_Pairs = list[tuple[float, float]]


def forecast_source(bundle: Bundle) -> Bundle:
    """The float32 ONNX bundle of a network: the bundle itself, or its export if that was made before.

    Raises:
        BundleError: there is none.
    """
    source = onnx_of(bundle)
    if source is None:
        raise BundleError(
            f"{bundle.path} has no fp32 ONNX export beside it, which the forecast is made from",
            fix=f"run: edgekit export {bundle.path} --format onnx",
        )
    return source


def forecast_here(source: Bundle, *, seconds: float = SECONDS, progress: Progress = silent) -> Forecast:
    """Forecast the candidates that `optimize` would race on this machine (see `forecast`)."""
    place = examine(open_device("local"), ())
    contenders = contenders_for(place, variants_for(place, small=False), streams=False)
    return forecast(source, contenders, seconds=seconds, progress=progress)


def forecast(
    source: Bundle, contenders: Sequence[Contender], *, seconds: float = SECONDS, progress: Progress = silent
) -> Forecast:
    """Time files that are quantized with invented ranges, and finished exports beside the source, on this machine.

    Nothing is kept, and no image is read. The times come from another process, so that a crash of a runtime fails its
    candidate only.

    Args:
        source: a float32 ONNX bundle.
        contenders: what to time, the reference first (see space.contenders_for).
        seconds: for timing all of them; each has a few blocks even if they take longer.

    Raises:
        EdgeKitError: the source cannot be read or run.
    """
    begun = time.monotonic()
    entries = [_entry(contender, source.manifest) for contender in contenders]
    shares = [_FLOAT_SHARE if entry["precision"] == "fp32" else 1.0 for entry in entries]
    with scratch_folder() as folder:
        files = _files(list(dict.fromkeys(contender.variant for contender in contenders)), source, folder, progress)
        jobs: dict[int, Entry] = {}
        for index, contender in enumerate(contenders):
            own, choice = files[contender.variant], contender.choice
            if isinstance(own, str):
                entries[index]["reason"] = own
                continue
            jobs[index] = {
                "file": str(own.path), "runtime": choice.name, "options": dict(choice.options),
                "seconds": seconds * shares[index] / sum(shares),
            }  # fmt: skip
        timed = dict(zip(jobs, _timed(list(jobs.values()), progress), strict=True))
    reference = timed[0]
    assert not isinstance(reference, str)  # noqa: S101 # _timed raises for the reference
    reference_ms = 1e3 * median(before for before, _ in reference)
    for index, pairs in timed.items():
        if isinstance(pairs, str):
            entries[index]["reason"] = pairs
        else:
            entries[index]["time"] = time_of([own / before for before, own in pairs], reference_ms)
    # relative to itself it takes exactly as long; its blocks only show the noise of the machine
    entries[0]["time"] = {"ms": reference_ms, "low": reference_ms, "high": reference_ms}
    return conclude_forecast(entries, str(source.path), time.monotonic() - begun)


def _entry(contender: Contender, source: Manifest) -> ForecastEntry:
    """The entry of a candidate that has not been timed."""
    variant, candidate = contender.variant, Candidate("", contender.choice)
    manifest = _manifest(source, variant)
    return {
        "name": candidate_name(candidate, Bundle(Path(), manifest, id="")), "file": variant.name,
        "precision": candidate.precision(manifest.precision), "runtime": str(contender.choice),
        "time": None, "speedup": None, "reason": "",
    }  # fmt: skip


def _manifest(source: Manifest, variant: Variant) -> Manifest:
    """The description of a variant's file, without requirements on the machine: the runtimes check what they need."""
    details = {"target": variant.target} if variant.target else {}
    return replace(source, format=variant.format, precision=variant.precision, details=details, requires={})


def _files(
    variants: Sequence[Variant], source: Bundle, folder: Path, progress: Progress
) -> dict[Variant, Bundle | str]:
    """Variant -> its file, or why there is none."""
    files: dict[Variant, Bundle | str] = {}
    quantizer = _Quantizer(source, folder)
    for index, variant in enumerate(variants):
        progress("files", index / len(variants))
        try:
            if variant == SOURCE:
                files[variant] = source
            elif variant.format != SOURCE.format:
                files[variant] = _export(source, variant.format)
            else:
                files[variant] = quantizer.file(variant)
        except EdgeKitError as error:
            files[variant] = str(error)
    return files


def _export(source: Bundle, format: str) -> Bundle | str:
    try:
        found = exported(network_of(source), format)
    except EdgeKitError:
        found = None
    return found or f"not forecast: export it first (edgekit export --format {format})"


class _Quantizer:
    """Makes files of lower precision from a source as `quantize` does, but without images and without judging them."""

    def __init__(self, source: Bundle, folder: Path) -> None:
        import onnx

        from ..quantize.prepare import prepare

        self._source, self._folder = source, folder
        self._model = prepare(onnx.load(str(source.model_path)))
        golden = source.golden()
        self._golden = Golden(golden.images[:1], golden.tensors[:1], golden.logits[:1], golden.checksums[:1])

    def file(self, variant: Variant) -> Bundle:
        """The file of a variant."""
        from ..quantize.emit import emit_int8
        from ..quantize.fp16 import emit_fp16
        from ..quantize.tune import golden_ranges, tune

        if variant.target is None:
            return self._written(emit_fp16(self._model), variant)
        tuned = tune(self._model, self._source, variant.target)
        # which activations have negative values decides about their types, so the ranges are not entirely arbitrary
        ranges = golden_ranges(tuned.model, self._source)
        return self._written(emit_int8(tuned.model, ranges, TARGETS[variant.target], tuned.form), variant)

    def _written(self, model: "onnx.ModelProto", variant: Variant) -> Bundle:
        from ...export.onnx_file import to_bytes

        manifest = _manifest(self._source.manifest, variant)
        path = self._folder / variant.name
        with create(path) as draft:
            (draft.folder / manifest.model).write_bytes(to_bytes(model))
            draft.add_golden(self._golden)
            draft.finish(manifest)
        return Bundle.open(path)


def _timed(entries: Sequence[Entry], progress: Progress) -> list[_Pairs | str]:
    """For each entry its blocks, or why it failed; the reference is timed against itself.

    Raises:
        EdgeKitError: the reference cannot be run.
    """
    results: dict[int, _Pairs | str] = {}
    while todo := [index for index in range(len(entries)) if index not in results]:
        at, done = 0, len(results)
        with _Child({"entries": list(entries), "todo": todo}) as child:
            for answer in child.answers():
                at = answer["index"]
                if (result := answer["pairs"] or answer["error"]) is not None:
                    results[at] = result
                progress("timing", len(results) / len(entries))
            if len(results) - done < len(todo):
                results.setdefault(at, child.end())
            if isinstance(failed := results[0], str) or len(results) == done:
                reason = failed if isinstance(failed, str) else child.end()
                raise DeviceError(f"the reference of the forecast cannot run: {reason}", fix="run edgekit doctor")
    return [results[index] for index in range(len(entries))]


class _Child:
    """The process for timing, from its parent's side."""

    def __init__(self, job: Job) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 # closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, *_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
            encoding="utf-8",
        )  # fmt: skip
        assert self._process.stdin  # noqa: S101 # it is a pipe
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stream:  # it ended: answers() has none
            stream.write(json.dumps(job))

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout  # noqa: S101 # it is a pipe
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def answers(self) -> Iterator[Answer]:
        """What it answers until it ends."""
        assert self._process.stdout  # noqa: S101 # it is a pipe
        for line in self._process.stdout:
            yield json.loads(line)

    def end(self) -> str:
        """How it ended, in words."""
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"its process {reason}{': ' + lines[-1] if lines else ''}"
