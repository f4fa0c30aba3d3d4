"""Training that starts from trained weights, or learns from a teacher."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError, RecipeError
from edgekit.export.export_bundle import export_bundle
from edgekit.models import network as networks
from edgekit.models.network import published
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.training import train as training
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.validation.overlap import unseen
from safetensors.torch import load_file


@pytest.fixture
def recipe() -> Recipe:
    """A small network on the digits."""
    return Recipe.load("digits", ["model.name=lenet", "preprocess.size=16", "train.epochs=2"])


@pytest.fixture
def five(tmp_path: Path, recipe: Recipe) -> Recipe:
    """A recipe for other classes: the digits 0 to 4."""
    from edgekit.toolkit import datasets

    with np.load(Path(datasets.__file__).parent / "data" / "digits.npz") as found:
        images, labels = found["images"], found["labels"]
    few = labels < 5
    np.savez(tmp_path / "five.npz", images=images[few], labels=labels[few], names=np.array(list("01234")))
    return recipe.changed([f'data.data="{tmp_path / "five.npz"}"'])


def _weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    return load_file(bundle.model_path)


def test_training_starts_from_a_bundle(recipe: Recipe, five: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    """With other classes, the classifier is new and named; the preprocessing is the bundle's; one epoch is enough."""
    caplog.set_level("INFO")
    first = training.train(recipe.changed(["preprocess.mean=[0.3]", "preprocess.std=[0.4]"]), out=Path("first"))
    quick = five.changed(["train.epochs=1", "train.lr=1e-4", "preprocess.size=0"])
    tuned = training.train(quick.changed([f'model.weights="{first.path}"']), out=Path("tuned"))
    assert "but new ones for 11.weight, 11.bias" in caplog.text
    assert tuned.manifest.preprocess == first.manifest.preprocess
    assert tuned.manifest.labels == tuple("01234")
    moved = [float((_weights(tuned)[n] - w).abs().max()) for n, w in _weights(first).items() if w.shape[:1] != (10,)]
    assert max(moved) < 0.05
    scratch = training.train(quick.changed(["preprocess.size=16"]), out=Path("scratch"))
    assert tuned.manifest.details["test"]["accuracy"] > scratch.manifest.details["test"]["accuracy"] + 0.1


def test_frozen_layers_stay(recipe: Recipe, five: Recipe) -> None:
    """While the backbone is frozen, only the classifier changes, and BatchNorm's statistics neither; then all do."""
    deep = ["model.name=cnn23", "preprocess.size=8"]
    first = training.train(recipe.changed(deep), out=Path("first"))
    start = [*deep, f'model.weights="{first.path}"', "model.freeze=1"]
    frozen = training.train(five.changed([*start, "train.epochs=1"]), out=Path("frozen"))
    before, after = _weights(first), _weights(frozen)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"21.weight", "21.bias"}
    training.train(five.changed([*start, "train.epochs=2"]), out=Path("thawed"))
    last = torch.load(Path("thawed.train/last.pt"), weights_only=True)["network"]
    assert sum(not torch.equal(before[name], weight) for name, weight in last.items()) > 10


def test_a_student_learns_from_its_teacher(recipe: Recipe) -> None:
    """From a teacher alone, without labels' share in the loss, though its mean and std differ."""
    recipe = recipe.changed(["train.epochs=8", "train.lr=0.01"])
    teacher = training.train(recipe.changed(["preprocess.mean=[0.1]", "preprocess.std=[0.7]"]), out=Path("teacher"))
    assert teacher.manifest.details["test"]["accuracy"] > 0.8
    settings = [f'train.teacher="{teacher.path}"', "train.teacher_weight=1.0"]
    student = training.train(recipe.changed(settings), out=Path("student"))
    assert student.manifest.details["test"]["accuracy"] > 0.8


def test_images_of_earlier_trainings_are_no_test_images(recipe: Recipe, five: Recipe) -> None:
    """What the weights or the teacher were trained on is left out of validations, also after export."""
    first = training.train(recipe.changed(["train.epochs=1"]), out=Path("first"))
    quick = five.changed(["train.epochs=1", "data.seed=5"])
    tuned = training.train(quick.changed([f'model.weights="{first.path}"']), out=Path("tuned"))
    again = training.train(quick.changed([f'model.weights="{tuned.path}"']), out=Path("again"))
    scratch = training.train(quick, out=Path("scratch"))
    exported = export_bundle(again, "onnx", Path("onnx"))
    counts = {}
    for bundle in (scratch, tuned, again, exported):
        test = part_of(bundle, "test")
        assert test is not None
        counts[bundle.path.name] = len(unseen([bundle], test, own=True)[0])
    # with another seed, about four fifths of the test images were training images of the first
    assert counts["scratch"] == 180
    assert counts["tuned"] == counts["again"] == counts["onnx"] < 90


def test_what_does_not_fit_is_refused(recipe: Recipe, five: Recipe, tmp_path: Path) -> None:
    """Another network, other classes of the teacher, another size, no bundle; each names what to type."""
    first = training.train(recipe.changed(["train.epochs=1"]), out=Path("first"))
    for settings, message in (
        ([f'model.weights="{first.path}"', "model.name=convnet"], "--model lenet"),
        ([f'train.teacher="{first.path}"', "preprocess.size=20"], "takes L images of"),
        ([f'model.weights="{tmp_path}"'], "is not a bundle"),
        (["model.pretrained=true"], "no published weights"),
    ):
        with pytest.raises(EdgeKitError) as caught:
            training.train(recipe.changed(settings), out=Path("refused"))
        assert message in f"{caught.value} {caught.value.fix}"
        assert not Path("refused.train").exists()
    with pytest.raises(RecipeError, match="other labels"):
        training.train(five.changed([f'train.teacher="{first.path}"']), out=Path("refused"))
    with pytest.raises(RecipeError, match="model.freeze is for pretrained"):
        recipe.changed(["model.freeze=1"])


@pytest.mark.parametrize(
    ("name", "resize", "crop", "interpolation"),
    [
        ("resnet18", 256, (224, 224), "bilinear"),
        ("efficientnet_b0", 256, (224, 224), "bicubic"),
        ("torchvision:efficientnet_b3", 320, (300, 300), "bicubic"),
        ("timm:mobilenetv3_small_100", 256, (224, 224), "bicubic"),
    ],
)
def test_published_weights_bring_their_preprocessing(
    name: str, resize: int, crop: tuple[int, int], interpolation: str
) -> None:
    """Resize, crop, interpolation, mean and std of the weights' own evaluation."""
    found = published(name)
    assert (found.resize, found.crop, found.interpolation) == (resize, crop, interpolation)
    assert found.mean == pytest.approx((0.485, 0.456, 0.406))
    assert found.std == pytest.approx((0.229, 0.224, 0.225))


def test_pretrained_preprocessing_is_the_bundle_s(
    image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weights file made on the spot: mean, std and interpolation are its own, the size is what the recipe names."""
    import torchvision

    weights = torchvision.models.get_model("mobilenet_v3_small", weights=None).state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: weights)
    recipe = Recipe.from_dict({"name": "x", "data": {"data": str(image_folder(each=10, size=40))}}).changed(
        ["model.name=mobilenet_v3_small", "model.pretrained=true", "model.freeze=1", "train.epochs=1",
         "train.batch_size=8", "preprocess.size=64"]
    )  # fmt: skip
    bundle = training.train(recipe, out=Path("made"))
    found = bundle.manifest.preprocess
    assert (found.crop, found.resize, found.interpolation) == ((64, 64), 73, "bilinear")
    assert found.mean == pytest.approx((0.485, 0.456, 0.406))
    assert torch.equal(_weights(bundle)["features.0.0.weight"], weights["features.0.0.weight"])
    assert networks.published("mobilenet_v3_small").crop == (224, 224)
