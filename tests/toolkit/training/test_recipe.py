"""Recipes are strict, and say what was meant."""

from pathlib import Path

import pytest
from edgekit.deploy.errors import RecipeError
from edgekit.models.network import MODELS
from edgekit.toolkit.training.recipe import Recipe, for_model, shipped


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load(name: str) -> None:
    """Each, and it gives the same recipe after a round trip."""
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_there_is_a_recipe_for_each_network_of_the_texts() -> None:
    """And it trains that network."""
    for name in ("cnn23", "lenet", "convnet", "vgg_small", "resnet18"):
        assert for_model(name).model.name == name
        assert name in shipped()


@pytest.mark.parametrize("name", [*MODELS, "torchvision:regnet_y_400mf", "timm:resnet18"])
def test_every_network_has_settings(name: str) -> None:
    """Its own or the general ones."""
    assert for_model(name).model.name == name


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.lrr=1", "did you mean train.lr"),
        ("trian.lr=1", "did you mean train"),
        ("train.lr", "--set train.lr=0.01"),
        ("train.lr=fast", "is 'fast', a str"),
        ("train.lr=0", "must be positive"),
        ("train.lr=nan", "must be positive"),
        ("train.epochs=1.5", "is 1.5, a float"),
        ("train.epochs=true", "is True, a bool"),
        ("train.epochs=0", "1 or more"),
        ("train.optimizer=sdg", "did you mean sgd"),
        ("train.schedule=onecycle", "did you mean one-cycle"),
        ("model.name=mobilnet_v2", "did you mean mobilenet_v2"),
        ("data.validation=1.5", "between 0 and 1"),
        ("train={}", "train"),
        ("train=3", "train must be a section"),
    ],
)
def test_wrong_settings_are_explained(setting: str, words: str) -> None:
    """A typo, a wrong type, a value out of range: never a default instead."""
    if setting == "train={}":
        assert Recipe().changed([setting]) == Recipe()
        return
    with pytest.raises(RecipeError) as caught:
        Recipe().changed([setting])
    assert words in f"{caught.value} {caught.value.fix}"


def test_settings_override(tmp_path: Path) -> None:
    """A file of one's own, then single settings, words without quotes."""
    (tmp_path / "mine.toml").write_text('[train]\nlr = 1\n[model]\nname = "lenet"\n')
    recipe = Recipe.load(str(tmp_path / "mine.toml"), ["train.optimizer=sgd", "preprocess.mean=[0.5]"])
    assert (recipe.name, recipe.train.lr, recipe.train.optimizer) == ("mine", 1.0, "sgd")
    assert recipe.preprocess.mean == (0.5,)


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    """The line is named."""
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(RecipeError, match="line 1"):
        Recipe.load(str(tmp_path / "bad.toml"))


def test_an_unknown_recipe_suggests() -> None:
    """Never the default one."""
    with pytest.raises(RecipeError, match="did you mean lenet"):
        Recipe.load("lennet")


def test_names_are_such_that_the_bundle_can_be_opened(tmp_path: Path) -> None:
    """Those made of a network's and a folder's are rewritten; one's own is refused before anything is trained."""
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
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, content: bytes) -> None:
    """Not text, nested without end, a number without end, and far too large."""
    (tmp_path / "own.toml").write_bytes(content)
    with pytest.raises(RecipeError, match="own"):
        Recipe.load(str(tmp_path / "own.toml"))
