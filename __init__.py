"""EdgeKit: take an image classifier from PyTorch to a device and prove there that it is faster and still right.

The public functions are resolved on first use, so that `import edgekit` stays light::

    from pathlib import Path

    import edgekit

    trained = edgekit.train(edgekit.Recipe.load("digits"))
    onnx = edgekit.export_bundle(trained, "onnx", Path("runs/digits-onnx"))
    int8 = edgekit.quantize(onnx, max_drop=2.0).bundle
    contract = edgekit.Contract(max_drop=2.0, min_speedup=1.2)
    validation = edgekit.validate([int8], contract=contract, plan=edgekit.Plan(seconds=4))
    print(validation.report["headline"], validation.exit_code)

Nothing is printed: messages go to the logger "edgekit", and long work calls `progress(stage, share)`.
"""

import logging

from .deploy.registry import resolve

__version__ = "0.1.0"

# A library should not print by itself; the command line adds a handler that prints.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_PUBLIC = {
    "BuildOptions": ".deploy.engine.build:Options",
    "Bundle": ".deploy.bundle:Bundle",
    "Contract": ".toolkit.analysis.contract:Contract",
    "EdgeKitError": ".deploy.errors:EdgeKitError",
    "ExportOptions": ".export.export_bundle:Options",
    "ImportOptions": ".toolkit.importing.import_model:ImportOptions",
    "PackOptions": ".toolkit.packing.pack:PackOptions",
    "Optimization": ".toolkit.optimizing.optimize:Optimization",
    "OptimizeOptions": ".toolkit.optimizing.options:OptimizeOptions",
    "Plan": ".deploy.measuring.plan:Plan",
    "Preprocess": ".deploy.preprocess:Preprocess",
    "Progress": ".deploy.progress:Progress",
    "QuantizeOptions": ".toolkit.quantize.options:QuantizeOptions",
    "Recipe": ".toolkit.training.recipe:Recipe",
    "ValidateOptions": ".toolkit.validation.validate:ValidateOptions",
    "Validation": ".toolkit.validation.validation:Validation",
    "build": ".toolkit.building.build:build",
    "export_bundle": ".export.export_bundle:export_bundle",
    "import_model": ".toolkit.importing.import_model:import_model",
    "load": ".deploy.session:load",
    "optimize": ".toolkit.optimizing.optimize:optimize",
    "pack": ".toolkit.packing.pack:pack",
    "predict": ".toolkit.predict:predict",
    "quantize": ".toolkit.quantize.quantize:quantize",
    "read_report": ".toolkit.validation.validation:read_report",
    "train": ".toolkit.training.train:train",
    "validate": ".toolkit.validation.validate:validate",
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll] # each is resolved by __getattr__
    "BuildOptions",
    "Bundle",
    "Contract",
    "EdgeKitError",
    "ExportOptions",
    "ImportOptions",
    "Optimization",
    "OptimizeOptions",
    "PackOptions",
    "Plan",
    "Preprocess",
    "Progress",
    "QuantizeOptions",
    "Recipe",
    "ValidateOptions",
    "Validation",
    "build",
    "export_bundle",
    "import_model",
    "load",
    "optimize",
    "pack",
    "predict",
    "quantize",
    "read_report",
    "train",
    "validate",
]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    return resolve(_PUBLIC[name], __name__)
