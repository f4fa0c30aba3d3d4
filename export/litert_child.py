"""The child process of litert.py: converts the torch.export program PROGRAM to the .tflite file MODEL.

Arguments: PACKAGES PROGRAM MODEL. The folder PACKAGES comes before the environment's packages. EdgeKit is not imported.
"""

import sys


def convert(program: str, model: str) -> None:
    """Convert a .pt2 file to a .tflite file. On any error, exit with its type and first line as the last of stderr."""
    try:
        import litert_torch  # pyright: ignore[reportMissingImports]
        import torch

        exported = torch.export.load(program)
        example = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"][-1]
        module = exported.module()
        litert_torch.convert(module, (torch.zeros(example.shape),)).export(model)
    except Exception as error:
        lines = str(error).strip().splitlines()
        sys.exit(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")


if __name__ == "__main__":
    packages, program, model = sys.argv[1:]
    sys.path.insert(0, packages)
    convert(program, model)
