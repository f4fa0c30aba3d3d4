"""Errors that a user can fix.

EdgeKitError                 a one-line message for the user, and what to do next
├── BundleError              a bundle is damaged, foreign, or of the wrong kind
│   └── EngineError          an engine cannot be built, or was built for another machine
├── DataError                an image, a label or a data set is not usable
├── DeviceError              a device, or a process on it, did not answer
│   └── LostDeviceError      a device was lost during a measurement
├── MissingPackageError      an optional package is not installed
├── ParityError              a converted model is not the same model
├── RecipeError              a setting is unknown or out of range
└── TrainingError            training cannot continue

Any other exception is a bug in EdgeKit and shows its traceback.
"""

import difflib
from collections.abc import Iterable

DISTRIBUTION = "edgekit-vision"

# Up to _LISTED names are listed in full. Of more, such as thousands of labels, only the first _SHOWN are.
_LISTED, _SHOWN = 30, 5

# Importable package -> the extra of the distribution that installs it.
_EXTRAS = {
    "onnx": "quantize",
    "tensorrt": "tensorrt",
    "cuda": "tensorrt",
    "cryptography": "sign",
    "executorch": "executorch",
    "lightning_fabric": "train",
    "matplotlib": "train",
    "ncnn": "ncnn",
    "onnxscript": "train",
    "onnxslim": "train",
    "pnnx": "pnnx",
    "safetensors": "train",
    "tomli": "train",
    "torch": "train",
    "torchvision": "train",
    "timm": "timm",
    "onnxruntime": "",
    "numpy": "",
    "PIL": "",
}


class EdgeKitError(Exception):
    """An error with a remedy: `str(error)` says what is wrong, `error.fix` what to do next."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.fix = fix

    def __reduce__(self):  # exceptions with keyword arguments do not pickle by default
        return (_rebuild, (type(self), str(self), self.fix))


class BundleError(EdgeKitError):
    """A bundle is damaged, foreign, or of the wrong kind."""


class EngineError(BundleError):
    """An engine cannot be built, or was built for another machine."""


class DataError(EdgeKitError):
    """An image, a label or a data set is not usable."""


class DeviceError(EdgeKitError):
    """A device, or a process on it, did not answer."""


class LostDeviceError(DeviceError):
    """A device was lost during a measurement; `measured` has its measurements so far, if any."""

    def __init__(self, message: str, *, fix: str, measured: object = None) -> None:
        super().__init__(message, fix=fix)
        self.measured = measured


class MissingPackageError(EdgeKitError):
    """An optional package is not installed."""


class ParityError(EdgeKitError):
    """A converted model is not the same model."""


class RecipeError(EdgeKitError):
    """A setting is unknown or out of range."""


class TrainingError(EdgeKitError):
    """Training cannot continue."""


def _rebuild(kind: type[EdgeKitError], message: str, fix: str) -> EdgeKitError:
    return kind(message, fix=fix)


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """Turn a failed import into an error with an install command; None if EdgeKit does not use the package."""
    root = (error.name or "").partition(".")[0]
    if root not in _EXTRAS:
        return None
    extra = _EXTRAS[root]
    target = f"'{DISTRIBUTION}[{extra}]'" if extra else DISTRIBUTION
    return MissingPackageError(f"the package {root} is not installed", fix=f"pip install {target}")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A message that `name` is not one of `known`, with the nearest names ("did you mean"), or else the known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"one of: {listed(known)}"
    return f"unknown {kind} {name!r}; {hint}"


def listed(names: Iterable[str]) -> str:
    """The names, comma-separated; for a long list, the first few and the total number."""
    names = list(names)
    if len(names) <= _LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:_SHOWN])}, … ({len(names):,} in all)"
