"""TorchScript: deprecated upstream, but many mobile apps still run it."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..bundle import Bundle
from ..errors import BundleError
from .program_archive import check_size
from .runtime import ThreadOptions
from .torch_module import ModuleSession

# What an image classifier needs besides ATen's tensor operators: values, containers, control flow.
_PRIM = {
    "BroadcastSizes", "CallFunction", "CallMethod", "ChunkSizes", "Constant", "ConstantChunk", "DictConstruct",
    "DictIndex", "GetAttr", "If", "ListConstruct", "ListUnpack", "Loop", "NumToTensor", "RaiseException", "SetAttr",
    "TupleConstruct", "TupleIndex", "TupleSlice", "TupleUnpack", "Uninitialized", "abs", "data", "device", "dtype",
    "is_cpu", "is_cuda", "is_mkldnn", "is_nested", "is_quantized", "is_sparse", "layout", "max", "min", "rangelist",
    "requires_grad", "shape", "tolist", "type", "unchecked_cast", "unchecked_unwrap_optional",
}  # fmt: skip
# ATen operators that take a file name: one maps a file, even for writing; the other writes one.
_FILE_OPERATORS = {"aten::from_file", "aten::save"}


def load_module(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file on the CPU in evaluation mode, and check that it holds only tensor operators.

    Raises:
        BundleError: the file runs code while it is loaded, has operators that reach beyond tensors, or this torch
            cannot load it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation is reported once, when the format is chosen
        try:
            _check_loading(path)
            module = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, UnicodeDecodeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BundleError(
                f"torch {torch.__version__} cannot load {path}: {reason}", fix="save the model again with this torch"
            ) from error
    for kind in _operators(module):
        namespace, _, name = kind.partition("::")
        if kind in _FILE_OPERATORS or not (namespace == "aten" or (namespace == "prim" and name in _PRIM)):
            raise BundleError(
                f"{path} is refused: it runs {kind}, which is not a tensor operator",
                fix="do not use a file that you do not trust; export your own network to ONNX",
            )
    return module


def _check_loading(path: Path) -> None:
    """Refuse code that would run before the module's graphs can be checked: __setstate__ and that of C++ objects."""
    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    check_size((reader.get_record_size(name) for name in names), path)
    for name in names:
        code = name.startswith("code/") and name.endswith(".py")
        if code or name.endswith(".pkl"):
            content = reader.get_record(name)
            if (code and b"__setstate__" in content) or b"torch.classes" in content:
                raise BundleError(
                    f"{path} is refused: it runs code while it is loaded ({name})",
                    fix="do not use a file that you do not trust; export your own network to ONNX",
                )


def _operators(module: torch.jit.ScriptModule) -> Iterator[str]:
    """The kinds of all nodes in all methods of all modules, including called functions."""
    for part in module.modules():
        for name in part._c._method_names():  # type: ignore[attr-defined]
            yield from _kinds(part._c._get_method(name).inlined_graph)  # type: ignore[attr-defined]


def _kinds(block: Any) -> Iterator[str]:
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)


def open_session(bundle: Bundle, options: ThreadOptions) -> ModuleSession:
    """Load a torchscript bundle."""
    return ModuleSession(load_module(bundle.model_path), "torchscript", bundle.manifest.input.batch, options.threads)
