"""Kinds of files that import does not accept as a model or as weights, each with its fix."""

from pathlib import Path
from typing import NamedTuple

from ...deploy.errors import BundleError
from ...deploy.manifest import MANIFEST

_HEAD = 512
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_LFS = b"version https://git-lfs.github.com/spec/"

_EXPORT = "export it to ONNX with the framework that made it"
_TF2ONNX = "pip install tf2onnx, then: python -m tf2onnx.convert"


class _Kind(NamedTuple):
    """A kind of file, recognized by its first bytes (`magic` at `offset`) or by its suffix."""

    name: str
    fix: str
    magic: bytes = b""
    offset: int = 0
    suffixes: tuple[str, ...] = ()


# In order of precedence: first bytes before suffixes. {} is the file's path.
_KINDS = (
    _Kind(
        "a Git LFS pointer, not the file itself", "run git lfs install, then git lfs pull, in its repository",
        _LFS,
    ),
    _Kind("a web page, not a model", "download the file itself (GitHub: the raw file)", b"<!doctype html"),
    _Kind("a web page, not a model", "download the file itself (GitHub: the raw file)", b"<html"),
    _Kind("a TensorFlow Lite model", f"{_TF2ONNX} --tflite {{}} --output model.onnx", b"TFL3", 4),
    _Kind("an ONNX Runtime model (.ort)", "import the .onnx file that it was made from", b"ORTM", 4),
    _Kind("a TensorRT engine", "import the ONNX file that it was built from; edgekit build makes the engine", b"ftrt"),
    _Kind("an HDF5 file (Keras)", f"{_TF2ONNX} --keras {{}} --output model.onnx", b"\x89hdf\r\n"),
    _Kind("compressed with gzip", "gunzip it first", b"\x1f\x8b"),
    _Kind(
        "a TensorFlow graph", f"{_TF2ONNX} --graphdef {{}} --inputs NAME:0 --outputs NAME:0 --output model.onnx",
        suffixes=(".pb",),
    ),
    _Kind("a Keras model", f"{_TF2ONNX} --keras {{}} --output model.onnx", suffixes=(".keras", ".h5")),
    _Kind("a TensorFlow Lite model", f"{_TF2ONNX} --tflite {{}} --output model.onnx", suffixes=(".tflite",)),
    _Kind(
        "a TensorRT engine", "import the ONNX file that it was built from; edgekit build makes the engine",
        suffixes=(".engine", ".plan", ".trt"),
    ),
    _Kind(
        "an OpenVINO model", "import the ONNX file that it was made from", suffixes=(".xml",),
    ),
    _Kind("a Core ML model", _EXPORT, suffixes=(".mlmodel", ".mlpackage")),
    _Kind("a Caffe model", _EXPORT, suffixes=(".caffemodel", ".prototxt")),
    _Kind("an ncnn model", _EXPORT, suffixes=(".param",)),
    _Kind("a PaddlePaddle model", "convert it with paddle2onnx", suffixes=(".pdmodel", ".pdparams")),
)  # fmt: skip


def refuse_foreign(path: Path) -> None:
    """Refuse a file or folder of a kind that EdgeKit cannot read; the error names the kind.

    Raises:
        BundleError: it is of such a kind, empty, or a folder.
    """
    if path.is_dir():
        raise BundleError(f"{path} is a folder, not a model file", fix=_folder_fix(path))
    with path.open("rb") as file:
        head = file.read(_HEAD).lower()
    if not head:
        raise BundleError(f"{path} is empty", fix="download or copy the file again")
    for kind in _KINDS:
        start = head.lstrip() if kind.magic.startswith(b"<") else head[kind.offset :]
        if (kind.magic and start.startswith(kind.magic.lower())) or path.suffix.lower() in kind.suffixes:
            raise BundleError(f"{path} is {kind.name}", fix=kind.fix.format(path))


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer."""
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _folder_fix(path: Path) -> str:
    if (path / MANIFEST).is_file():
        return f"it is already a bundle: edgekit validate {path}"
    if (path / "saved_model.pb").is_file():
        return f"{_TF2ONNX} --saved-model {path} --output model.onnx"
    if path.suffix == ".mlpackage":
        return _EXPORT
    models = sorted(entry for entry in path.iterdir() if entry.suffix == ".onnx")
    return f"pass the file in it: {models[0]}" if models else "pass a model file: .onnx, TorchScript or .pt2"
