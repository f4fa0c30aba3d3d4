"""Sweeps: a recipe with a grid of values, and the recipe of each point."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...deploy.errors import RecipeError
from ..workspace import safe_name
from .recipe import Recipe, parse_setting, read_recipe

# More points would not be trained on purpose, and a table of them could not be read.
MAX_POINTS = 256


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        name: its folder's name in the sweep's folder, of its number and its values: "002-lenet-relu-30".
        values: of the keys of the grid.
    """

    name: str
    values: dict[str, object]
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A recipe, and lists of values for some of its keys, of which each combination is a point.

    Attributes:
        grid: key, such as "train.epochs" -> values.
    """

    recipe: Recipe
    grid: dict[str, list[object]]

    @classmethod
    def load(cls, name: str, settings: Iterable[str] = ()) -> "Sweep":
        """Read a recipe file with a section [sweep], and change single settings of the recipe ("train.lr=0.01").

        Raises:
            RecipeError: there is no such file, no section [sweep], or a point of the grid is not a valid recipe.
        """
        data = read_recipe(name)
        if "sweep" not in data:
            raise RecipeError(
                f"{name} has no section [sweep]", fix='add one, e.g. model.activation = ["relu", "swish"] below [sweep]'
            )
        return cls.from_dict(data, dict(parse_setting(setting) for setting in settings))

    @classmethod
    def from_dict(cls, data: Mapping[str, object], values: Mapping[str, object] | None = None) -> "Sweep":
        """Build a sweep from nested plain values, as to_dict returns them.

        Args:
            values: other values for keys of the recipe that are not in the grid.

        Raises:
            RecipeError: a value or a point of the grid is not valid, or the grid has too many points.
        """
        grid = dict(_flattened(data.get("sweep"), ""))
        count = math.prod(map(len, grid.values())) if grid else 0
        if not 1 <= count <= MAX_POINTS:
            raise RecipeError(
                f"the sweep has {count} points; it must have from 1 to {MAX_POINTS}",
                fix="change the values below [sweep]",
            )
        if both := [key for key in values or () if key in grid]:
            raise RecipeError(f"{both[0]} is part of the sweep", fix="change its values below [sweep]")
        recipe = Recipe.from_dict({key: value for key, value in data.items() if key != "sweep"})
        sweep = cls(recipe.with_values(values or {}), grid)
        sweep.points()
        return sweep

    def points(self) -> list[Point]:
        """The points, the last key varying fastest.

        Raises:
            RecipeError: a point is not a valid recipe.
        """
        points = []
        for number, combination in enumerate(itertools.product(*self.grid.values()), 1):
            name = f"{number:03d}-{safe_name('-'.join(map(_word, combination)))}"
            values = dict(zip(self.grid, combination, strict=True))
            named = {"name": safe_name(f"{self.recipe.name}-{name}")}
            points.append(Point(name, values, self.recipe.with_values(values | named)))
        return points

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as from_dict reads them."""
        return {**self.recipe.to_dict(), "sweep": self.grid}


def _flattened(value: object, where: str) -> Iterator[tuple[str, list[object]]]:
    """(key, values) of a section; TOML reads train.epochs as a section in it, "train.epochs" as one key."""
    if not isinstance(value, Mapping):
        raise RecipeError("sweep must be a section", fix="write [sweep] and its keys below it")
    for name, entry in value.items():
        key = f"{where}{name}"
        if isinstance(entry, Mapping):
            yield from _flattened(entry, f"{key}.")
            continue
        if key == "name" or not isinstance(entry, list) or not entry:
            raise RecipeError(f"sweep.{key} must be a list of values", fix="e.g. train.epochs = [10, 30]")
        if any(entry[index] in entry[:index] for index in range(len(entry))):
            raise RecipeError(f"sweep.{key} contains a value twice", fix="remove one of them")
        yield key, entry


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
