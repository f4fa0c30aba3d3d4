"""Train, export, quantize and validate with the Python API, on the digits that ship with EdgeKit.

    python examples/train_to_validate.py

This takes about two minutes on two cores and writes the report to `report/`. For a quick trial:

    python examples/train_to_validate.py --epochs 2 --seconds 1
"""

import argparse
import sys
from pathlib import Path

import edgekit


def main() -> int:
    """Run the chain; returns the verdict's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="minimum seconds for the latency measurement")
    arguments = parser.parse_args()

    recipe = edgekit.Recipe.load("digits", [f"train.epochs={arguments.epochs}"])
    trained = edgekit.train(recipe, progress=show)
    exported = edgekit.export_bundle(trained, "onnx", Path("runs/digits-onnx-fp32"))
    quantized = edgekit.quantize(exported, max_drop=2.0, progress=show)

    validation = edgekit.validate(
        [quantized.bundle],
        contract=edgekit.Contract(max_drop=2.0),
        plan=edgekit.Plan(seconds=arguments.seconds, threads=1),
        progress=show,
    )
    validation.show()
    for path in validation.write("report"):
        print(path)
    return validation.exit_code


def show(stage: str, share: float) -> None:
    """Print each stage once it is done."""
    if stage and share == 1:
        print(f"done: {stage}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
