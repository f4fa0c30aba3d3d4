"""Recipes are strict, and errors suggest the right spelling."""

from pathlib import Path

import pytest
from edgekit.deploy.errors import RecipeError
from edgekit.models.network import MODELS
from edgekit.toolkit.training.recipe import Recipe, for_model, shipped


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load(name: str) -> None:
    """Each loads, and is the same recipe after a round trip."""
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_documented_networks_have_recipes() -> None:
    """Each has a recipe that trains that network."""
    for name in ("cnn23", "lenet", "convnet", "vgg_small", "resnet18"):
        assert for_model(name).model.name == name
        assert name in shipped()


@pytest.mark.parametrize("name", [*MODELS, "torchvision:regnet_y_400mf", "timm:resnet18"])
def test_every_network_has_settings(name: str) -> None:
    """Its own settings or the default ones."""
    assert for_model(name).model.name == name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lrr=1", "did you mean train.lr"),
        ("trian.lr=1", "did you mean train"),
        ("train.lr", "--set train.lr=0.01"),
        ("train.lr=fast", "must be of type float, not 'fast'"),
        ("train.lr=0", "must be positive"),
        ("train.lr=nan", "must be positive"),
        ("train.epochs=1.5", "must be of type int, not 1.5"),
        ("train.epochs=true", "must be of type int, not True"),
        ("train.epochs=0", "1 or more"),
        ("train.optimizer=sdg", "did you mean sgd"),
        ("train.schedule=onecycle", "did you mean one-cycle"),
        ("model.name=mobilnet_v2", "did you mean mobilenet_v2"),
        ("data.validation=1.5", "between 0 and 1"),
        ("train={}", "train"),
        ("train=3", "train must be a section"),
    ],
)
def test_wrong_settings_are_explained(setting: str, message: str) -> None:
    """A typo, a wrong type, a value out of range: a default never replaces it."""
    if setting == "train={}":
        assert Recipe().changed([setting]) == Recipe()
        return
    with pytest.raises(RecipeError) as caught:
        Recipe().changed([setting])
    assert message in f"{caught.value} {caught.value.fix}"


def test_settings_override(tmp_path: Path) -> None:
    """Settings override a user's file; strings need no quotes."""
    (tmp_path / "mine.toml").write_text('[train]\nlr = 1\n[model]\nname = "lenet"\n')
    recipe = Recipe.load(str(tmp_path / "mine.toml"), ["train.optimizer=sgd", "preprocess.mean=[0.5]"])
    assert (recipe.name, recipe.train.lr, recipe.train.optimizer) == ("mine", 1.0, "sgd")
    assert recipe.preprocess.mean == (0.5,)


def test_invalid_toml(tmp_path: Path) -> None:
    """The error names the line."""
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(RecipeError, match="line 1"):
        Recipe.load(str(tmp_path / "bad.toml"))


def test_an_unknown_recipe_suggests() -> None:
    """A misspelled name never loads the default recipe."""
    with pytest.raises(RecipeError, match="did you mean lenet"):
        Recipe.load("lennet")


def test_recipe_names_are_valid_bundle_names(tmp_path: Path) -> None:
    """Generated names are made valid; an invalid name of the user's is refused before training."""
    from edgekit.deploy.manifest import check_name
    from edgekit.toolkit.commands.train import _recipe

    assert _recipe(None, "timm:test_resnet", "my photos (new)/", []).name == "timm-test_resnet-my-photos-new"
    for data in (".", "x" * 300, "…"):
        check_name(_recipe(None, "convnet", data, []).name)
    (tmp_path / "my recipe.toml").write_text("[train]\nepochs = 1\n")
    assert Recipe.load(str(tmp_path / "my recipe.toml")).name == "my-recipe"
    with pytest.raises(RecipeError, match="org/model"):
        Recipe.load("digits", ["name=org/model"])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 5000, b"a = " + b"9" * 5000, b"#" * (2 << 20)])
def test_an_unreadable_recipe_is_one_line(tmp_path: Path, content: bytes) -> None:
    """Not text, nested too deeply, a number with too many digits, a file that is too large."""
    (tmp_path / "own.toml").write_bytes(content)
    with pytest.raises(RecipeError, match="own"):
        Recipe.load(str(tmp_path / "own.toml"))
