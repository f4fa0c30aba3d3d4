"""The child process of litert.py: quantizes the .tflite file MODEL to int8 with ai-edge-quantizer, into OUT.

Arguments: PACKAGES MODEL REQUEST OUT. The folder PACKAGES comes before the environment's packages. REQUEST is a JSON
file: {"ranges": {name of a tensor: [low, high]}, "float_operators": [name of an operator], "logits": name of a tensor}.
EdgeKit is not imported.
"""

import json
import re
import sys
from pathlib import Path


def quantize(model: str, request: str, out: str) -> None:
    """Write the int8 file. On any error, exit with its type and first line as the last of stderr."""
    try:
        import numpy as np
        from ai_edge_quantizer import quantizer, recipe  # pyright: ignore[reportMissingImports]

        wanted = json.loads(Path(request).read_text())
        writer = quantizer.Quantizer(model)
        left_float = [
            {"regex": ".*", "operation": name, "algorithm_key": "no_quantize", "op_config": None}
            for name in ("INPUT", "OUTPUT", *wanted["float_operators"])
        ]
        # int8 weights, and logits that are not rounded: "dynamic" rounds the input of the operator only
        scope = f"^{re.escape(wanted['logits'])};?$"
        logits = [{**entry, "regex": scope, "operation": "FULLY_CONNECTED"} for entry in recipe.dynamic_wi8_afp32()]
        writer.load_quantization_recipe([*recipe.static_wi8_ai8(), *left_float, *logits])
        ranges = {
            name: {"min": np.array([[low]], np.float32), "max": np.array([[high]], np.float32)}
            for name, (low, high) in wanted["ranges"].items()
        }
        content = writer.quantize(ranges).quantized_model
        if content is None:
            raise ValueError("the quantizer wrote no model")
        Path(out).write_bytes(content)
    except Exception as error:
        lines = str(error).strip().splitlines()
        sys.exit(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")


if __name__ == "__main__":
    packages, model, request, out = sys.argv[1:]
    sys.path.insert(0, packages)
    quantize(model, request, out)
