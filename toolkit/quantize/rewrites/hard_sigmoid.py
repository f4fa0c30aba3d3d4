"""HardSigmoid and HardSwish as a sum that saturates, which stays in eight bits.

    HardSigmoid(x) = clip(alpha x + beta, 0, 1) = alpha clip(x + beta / alpha, 0, 1 / alpha)

Quantizing the sum to [0, 1 / alpha] clips it. The factor alpha changes no byte, only the scale that the bytes are read
with (see scaling.py). Runtimes have neither operator in int8, and would dequantize, compute in float, and quantize.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx.helper import make_node

from .graph import add_constant, attributes, replace_nodes

# Of HardSwish, by the ONNX specification; the defaults of HardSigmoid are others.
_HARD_SWISH = (1 / 6, 0.5)
_HARD_SIGMOID = (0.2, 0.5)


def saturating_sums(graph: onnx.GraphProto) -> bool:
    """Replace each HardSigmoid and HardSwish."""
    replaced: dict[str, Sequence[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type not in ("HardSigmoid", "HardSwish"):
            continue
        options = attributes(node)
        defaults = _HARD_SWISH if node.op_type == "HardSwish" else _HARD_SIGMOID
        alpha, beta = float(options.get("alpha", defaults[0])), float(options.get("beta", defaults[1]))  # type: ignore[arg-type]
        if alpha <= 0:
            continue
        source, result = node.input[0], node.output[0]
        gate = f"{result}/gate" if node.op_type == "HardSwish" else result
        constants = [
            add_constant(graph, f"{result}/{name}", np.float32(value))
            for name, value in (("offset", beta / alpha), ("zero", 0), ("limit", 1 / alpha), ("factor", alpha))
        ]
        offset, zero, limit, factor = constants
        replaced[result] = [
            make_node("Add", [source, offset], [f"{result}/sum"], f"{node.name}/add"),
            make_node("Clip", [f"{result}/sum", zero, limit], [f"{result}/clipped"], f"{node.name}/clip"),
            make_node("Mul", [f"{result}/clipped", factor], [gate], f"{node.name}/scale"),
        ]
        if node.op_type == "HardSwish":
            replaced[result] = [*replaced[result], make_node("Mul", [source, gate], [result], f"{node.name}/mul")]
    replace_nodes(graph, replaced)
    return bool(replaced)
