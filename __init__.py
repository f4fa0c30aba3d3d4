"""EdgeKit: take an image classifier from PyTorch to a device and prove there that it is faster and still right.

The public functions are resolved on first use, so that `import edgekit` stays light::

    import edgekit

    bundle = edgekit.train(edgekit.Recipe.load("digits"))
    onnx = edgekit.export_bundle(bundle, "onnx")
    int8 = edgekit.quantize(onnx).bundle
    result = edgekit.validate([int8], contract=edgekit.Contract(max_drop=0.5, min_speedup=1.2))
"""

import logging

from .deploy.registry import resolve

__version__ = "0.1.0"

# A library prints nothing unasked; the command line adds a handler that prints.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_PUBLIC = {
    "BuildOptions": ".deploy.engine.build:Options",
    "Bundle": ".deploy.bundle:Bundle",
    "Contract": ".toolkit.analysis.contract:Contract",
    "Plan": ".deploy.measuring.plan:Plan",
    "Recipe": ".toolkit.training.recipe:Recipe",
    "build": ".toolkit.building.build:build",
    "export_bundle": ".export.export_bundle:export_bundle",
    "import_model": ".toolkit.importing.import_model:import_model",
    "load": ".deploy.session:load",
    "quantize": ".toolkit.quantize.quantize:quantize",
    "train": ".toolkit.training.train:train",
    "validate": ".toolkit.validation.validate:validate",
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll] # each is resolved by __getattr__
    "BuildOptions",
    "Bundle",
    "Contract",
    "Plan",
    "Recipe",
    "build",
    "export_bundle",
    "import_model",
    "load",
    "quantize",
    "train",
    "validate",
]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    return resolve(_PUBLIC[name], __name__)
