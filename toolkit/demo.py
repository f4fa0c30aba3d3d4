"""The whole chain on the embedded digits."""

from pathlib import Path

from ..export.export_bundle import export_bundle
from .console import say
from .quantize.quantize import Quantized, quantize
from .training.recipe import Recipe
from .training.train import train
from .validation.validate import Validation, validate
from .workspace import RUNS, new_path


def demo(runs: Path = RUNS) -> tuple[Quantized, Validation]:
    """Train a small CNN on the digits, export it, quantize it, validate it against the original."""
    say("1/4 train")
    trained = train(Recipe.load("digits"), runs=runs)
    say("2/4 export to ONNX")
    exported = export_bundle(trained, "onnx", new_path("digits-onnx-fp32", runs))
    say("3/4 quantize to int8")
    quantized = quantize(exported, runs=runs)
    for sentence in quantized.sentences:
        say(sentence)
    say("4/4 validate on this machine")
    return quantized, validate([quantized.bundle])
