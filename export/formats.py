"""The export formats; --help and completion list them without importing the exporters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        export: "module:function" taking (network, images float32 [n, c, h, w], path, options, manifest) and returning
            details for the manifest. The model file that it writes is not trusted yet.
        suffix: the suffix of the model file.
        packages: packages whose versions are recorded.
        options: names of the Options that it supports.
    """

    export: str
    suffix: str
    packages: tuple[str, ...]
    options: tuple[str, ...]


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx:export", ".onnx", ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime"),
        ("dynamic_batch", "opset", "cross_check", "uint8_input"),
    ),
    "openvino": Format(
        ".openvino:export", ".xml", ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino"),
        ("dynamic_batch", "opset", "cross_check"),
    ),
    "torchscript": Format(".torchscript:export", ".torchscript", ("torch",), ("dynamic_batch",)),
    "exported-program": Format(".exported_program:export", ".pt2", ("torch",), ("dynamic_batch",)),
    "litert": Format(".litert:export", ".tflite", ("torch", "ai-edge-litert"), ()),
    "ncnn": Format(".ncnn:export", ".param", ("torch", "onnx", "onnxslim", "pnnx", "ncnn"), ()),
    "executorch": Format(".executorch:export", ".pte", ("torch", "executorch"), ()),
}  # fmt: skip
