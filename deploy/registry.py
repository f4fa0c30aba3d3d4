"""Registries: dict literals of name -> "module:object", resolved on use, so that listing names imports nothing."""

import importlib
from collections.abc import Mapping
from typing import Any

from .errors import EdgeKitError, RecipeError, listed, missing_package, unknown


def resolve(reference: str, package: str) -> Any:
    """Import the object of a reference "module:object", relative to `package`.

    Raises:
        MissingPackageError: the module needs an optional package that is not installed.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module, package), name)
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from error


def choose(registry: Mapping[str, object], name: str, kind: str, error: type[EdgeKitError] = RecipeError) -> Any:
    """The entry called `name`.

    Raises:
        EdgeKitError: (of class `error`) there is no such entry; the message suggests the nearest names.
    """
    if name not in registry:
        raise error(unknown(kind, name, registry), fix=f"choose one of: {listed(registry)}")
    return registry[name]
