"""Import the user's model as a bundle: .onnx, TorchScript, torch.export .pt2, a factory, or a library's network."""

import contextlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...deploy.bundle import Bundle, Draft, create, make_golden
from ...deploy.documents import DocumentError
from ...deploy.errors import BundleError, EdgeKitError, ParityError, RecipeError
from ...deploy.manifest import Manifest, TensorSpec, check_name
from ...deploy.parity import FLOAT_TOLERANCE
from ...deploy.preprocess import Preprocess
from ...deploy.session import Session, open_session
from ..datasets import Dataset, load_dataset
from ..workspace import RUNS, new_path, safe_name
from .files import refuse_foreign
from .network import capture_factory, capture_named, is_named
from .written import Written

_log = logging.getLogger(__name__)

# How far the sum of an image's probabilities may be from 1 (float16 and int8 round them).
_SUM_TOLERANCE = 0.02


@dataclass(frozen=True)
class Source:
    """A model to import.

    Attributes:
        format: format of the bundle.
        suffix: suffix of its model file.
        write: writes the model file to a path, for an input and a number of classes.
        packages: packages whose versions are recorded.
    """

    format: str
    suffix: str
    write: Callable[[Path, TensorSpec, int], Written]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class ImportOptions:
    """Labels and weights of a model, and the division of its images.

    Attributes:
        labels: class names, in the order of the logits; empty to number the classes.
        weights: weights for a factory or a named network: safetensors, or a state dict (loaded with weights_only).
        seed: seed for the division of the images into parts.
        skip_corrupt: leave out images that cannot be decoded.
    """

    labels: Sequence[str] = ()
    weights: Path | None = None
    seed: int = 0
    skip_corrupt: bool = False


def import_model(
    model: str,
    options: ImportOptions | None = None,
    *,
    name: str,
    preprocess: Preprocess,
    images: str,
    out: Path | None = None,
    runs: Path = RUNS,
) -> Bundle:
    """Make a bundle from a model that EdgeKit did not make.

    Args:
        model: a file (.onnx, TorchScript, .pt2), `package.module:factory`, `path/to/net.py:Net`, or a network's name as
            `create_network` takes it.
        preprocess: its crop is the size that the model takes, and its dtype is `input_dtype(model)`.
        images: a folder or named data set, the source of golden samples, calibration and test images.

    Raises:
        BundleError: the file is not a model with one image input and one [n, k] output of these shapes.
        EdgeKitError: the factory or its weights cannot be loaded.
        DataError: the images cannot be used.
        ParityError: the model's answers are not finite, or depend on the other images in the batch.
        RecipeError: mean or std are not on the scale 0 to 1, or preprocessing has no crop.
    """
    options = options or ImportOptions()
    _check_name(name)
    source = _source(model, options.weights)
    check_scale(preprocess)
    if preprocess.crop is None:
        raise RecipeError("a model's input cannot be of any size", fix="set the crop of Preprocess to the input's size")
    given_labels = tuple(options.labels)
    dataset = load_dataset(images, seed=options.seed, labels=given_labels or None, skip_corrupt=options.skip_corrupt)
    labels = given_labels or dataset.test.labels
    path = out or new_path(name, runs)
    spec = TensorSpec(len(preprocess.mean), *preprocess.crop)
    with create(path) as draft:
        written = source.write(draft.folder / f"model{source.suffix}", spec, len(labels))
        if written.dtype != preprocess.dtype:
            raise BundleError(
                f"{model} takes {written.dtype}, but preprocessing produces {preprocess.dtype}",
                fix=f"give Preprocess the dtype {written.dtype!r}",
            )
        for change in written.changes:
            _log.info(f"{model}: {change}")
        weights = str(options.weights) if options.weights else None
        details = {"imported": model, "weights": weights, "changes": list(written.changes)}
        manifest = Manifest(
            name=name, format=source.format, precision=written.precision, model=f"model{source.suffix}", labels=labels,
            input=replace(spec, batch=written.batch), preprocess=preprocess, parameters=written.parameters,
            data=dataset.reference(), details=details,
        )  # fmt: skip
        _fill(draft, manifest, dataset, source.packages, written)
    return Bundle.open(path)


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except DocumentError as error:
        raise EdgeKitError(str(error), fix=f"--name {safe_name(name)}") from error


def input_dtype(model: str) -> Literal["float32", "uint8"]:
    """The Preprocess.dtype for a model that import_model takes by this name.

    Raises:
        EdgeKitError: import_model does not take it.
    """
    _source(model, None)
    path = Path(model)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return "float32"
    from .graph import input_dtype as dtype_of

    return dtype_of(path)


def check_scale(preprocess: Preprocess) -> None:
    """Refuse a mean or std for pixels from 0 to 255.

    On the scale 0 to 1, a mean is between -1 and 1, a deviation is at most 0.5, and a std of 1 means no division.

    Raises:
        RecipeError: the values are of that kind; the fix has them on the scale 0 to 1.
    """
    large_mean = max(map(abs, preprocess.mean)) > 1
    if not large_mean and max(preprocess.std) <= 1:
        return
    # with such a mean, a std of 1 is for pixels from 0 to 255 too
    mean = [value / 255 for value in preprocess.mean] if large_mean else preprocess.mean
    std = [value / 255 for value in preprocess.std] if max(preprocess.std) >= 1 else preprocess.std
    lists = [",".join(f"{value:.6g}" for value in values) for values in (mean, std)]
    raise RecipeError(
        "--mean and --std are for pixels from 0 to 255; EdgeKit expects the scale 0 to 1",
        fix=f"--mean {lists[0]} --std {lists[1]}",
    )


def _fill(draft: Draft, manifest: Manifest, dataset: Dataset, packages: tuple[str, ...], written: Written) -> None:
    """Run the model on real images for the golden samples, and check its answers."""
    session, manifest = _open(draft, manifest)
    with contextlib.closing(session):
        golden = make_golden(dataset.test, manifest.preprocess, session.run)
        _check_answers(golden.logits)
        _check_batch(golden.tensors, golden.logits, session.run)
    if written.check is not None:
        written.check(golden.tensors, golden.logits)
    draft.add_golden(golden)
    draft.add_splits(dataset.splits())
    draft.add_fingerprints(dataset.fingerprints())
    if not manifest.labels:
        manifest = replace(manifest, labels=tuple(str(index) for index in range(golden.logits.shape[1])))
    draft.finish(manifest, packages)


def _open(draft: Draft, manifest: Manifest) -> tuple[Session, Manifest]:
    """A session that was checked to return logits, and the manifest with the batch size that the model really takes."""
    image = np.zeros((1, *manifest.input.shape), manifest.preprocess.dtype)
    session = _load(draft, manifest)
    try:
        shape = session.run(image).shape
    except Exception as error:  # each runtime raises its own error for a wrong shape
        raise BundleError(
            f"the model does not run on an input of {list(image.shape)}: {' '.join(str(error).split())}",
            fix="correct --input (channels x height x width)",
        ) from error
    _check_shape(shape, len(manifest.labels))
    if manifest.input.batch is not None:
        return session, manifest
    try:
        any_batch = session.run(np.repeat(image, 2, axis=0)).shape == (2, shape[1])
    except Exception:  # as above
        any_batch = False
    if any_batch:
        return session, manifest
    session.close()
    _log.info("the model takes one image at a time, whatever its input declares")
    manifest = replace(manifest, input=replace(manifest.input, batch=1))
    return _load(draft, manifest), manifest


def _load(draft: Draft, manifest: Manifest) -> Session:
    try:
        return open_session(Bundle(draft.folder, manifest, id=""))
    except BundleError as error:  # it names a file that the user does not know
        path = str(draft.folder / manifest.model)
        raise BundleError(str(error).replace(path, manifest.details["imported"]), fix=error.fix) from error


def _check_shape(shape: tuple[int, ...], labels: int) -> None:
    """Refuse a model whose answer to one image is not one logit per class."""
    if len(shape) != 2 or shape[0] != 1:
        kinds = {1: "one image's scores without a batch", 3: "a list of boxes or tokens", 4: "a map"}
        raise BundleError(
            f"the model returns a shape of {list(shape)}, not [1, classes]"
            + (f": {kinds[len(shape)]}" if len(shape) in kinds else ""),
            fix="import an image classifier, or export this one with its [n, classes] logits as output",
        )
    if shape[1] < 2:
        raise BundleError(
            "the model has 1 output: it is a regression or a binary model with a single score, not a classifier",
            fix="a classifier has at least 2 outputs, one per class",
        )
    if labels and labels != shape[1]:
        raise BundleError(
            f"the model has {shape[1]} outputs, but the number of labels is {labels}",
            fix="pass --labels with one class name per line, in the order of the outputs",
        )


def _check_answers(answers: np.ndarray) -> None:
    """Refuse answers [n, k] that are not logits."""
    if not np.isfinite(answers).all():
        raise ParityError("the model's answers to real images are not finite numbers", fix="check its weights")
    if (answers >= 0).all() and (np.abs(answers.sum(axis=1) - 1) <= _SUM_TOLERANCE).all():
        raise BundleError(
            "the model returns probabilities (those of each image add up to 1), to which EdgeKit would apply a "
            "second softmax",
            fix="make it return the logits: remove the final Softmax, and export it again",
        )


def _check_batch(tensors: np.ndarray, logits: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> None:
    """Refuse a model whose answer to an image depends on the rest of the batch (a BatchNorm in training mode does)."""
    alone = run(tensors[:1])
    if not np.abs(alone - logits[:1]).max() <= FLOAT_TOLERANCE * max(float(np.abs(logits).max()), 1e-3):
        raise ParityError(
            "the model answers an image differently when others are in the batch: it is in training mode",
            fix="call .eval() before saving it",
        )


def _source(model: str, weights: Path | None) -> Source:
    path = Path(model)
    if path.exists():
        refuse_foreign(path)
        if weights is not None:
            raise EdgeKitError(f"{model} contains its own weights", fix="leave out --weights")
        return _file_source(path)
    if is_named(model):
        return Source(
            "exported-program", ".pt2", lambda out, spec, classes: capture_named(model, weights, out, spec, classes),
            ("torch",),
        )  # fmt: skip
    module, colon, factory = model.rpartition(":")
    if not colon or not module or not factory:
        raise EdgeKitError(
            f"no file at {model}, and it is not package.module:factory",
            fix="check the path, or name a factory, timm:NAME or torchvision:NAME",
        )
    return Source(
        "exported-program",
        ".pt2",
        lambda out, spec, _: capture_factory(module, factory, weights, out, spec),
        ("torch",),
    )


def _file_source(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return Source("onnx", ".onnx", lambda out, spec, _: _onnx(path, out, spec), ("onnx", "onnxruntime"))
    weights_of = f"edgekit import package.module:factory --weights {path} (or timm:NAME, torchvision:NAME)"
    if suffix == ".safetensors":
        raise EdgeKitError(f"{path} contains weights, not a model", fix=f"name their network: {weights_of}")
    if not zipfile.is_zipfile(path):
        raise EdgeKitError(
            f"{path} is not an ONNX (.onnx), TorchScript or torch.export file",
            fix=f"for weights name their network: {weights_of}",
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        return Source("torchscript", ".torchscript", lambda out, *_: _copy_torchscript(path, out), ("torch",))
    if any(
        name.endswith(("archive_format", "models/model.json", "serialized_exported_program.json")) for name in names
    ):
        return Source("exported-program", ".pt2", lambda out, spec, _: _copy_program(path, out, spec), ("torch",))
    raise EdgeKitError(
        f"{path} is a pickled checkpoint, not a model: EdgeKit does not run pickles",
        fix=f"name its network: {weights_of}",
    )


def _onnx(path: Path, out: Path, spec: TensorSpec) -> Written:
    from .graph import copy_onnx

    return copy_onnx(path, out, spec)


def _copy_torchscript(path: Path, out: Path) -> Written:
    """Copy a TorchScript module. Any batch size is assumed; `_open` detects a fixed one."""
    from ...deploy.runtimes.torchscript import load_module

    out.write_bytes(path.read_bytes())
    return Written(None, sum(weight.numel() for weight in load_module(out).parameters()))


def _copy_program(path: Path, out: Path, spec: TensorSpec) -> Written:
    """Copy a torch.export program. The shape of its first input has the batch size."""
    from ...deploy.runtimes.exported_program import load_program

    out.write_bytes(path.read_bytes())
    program = load_program(out)
    inputs = program.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name in inputs)
    if len(inputs) != 1 or tuple(shape[1:]) != spec.shape:
        raise BundleError(f"{path} takes {len(inputs)} input(s), the first {list(shape)}", fix="correct --input")
    return Written(shape[0] if isinstance(shape[0], int) else None, _parameters(program))


def _parameters(program: Any) -> int:
    return sum(weight.numel() for _, weight in program.named_parameters())
