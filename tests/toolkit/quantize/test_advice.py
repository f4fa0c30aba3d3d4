"""Advice about calibration: planted mistakes are named, and good images cause no warning."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle, Golden
from edgekit.deploy.fingerprints import fingerprint
from edgekit.deploy.images import ImageSet
from edgekit.deploy.preprocess import Preprocess
from edgekit.deploy.session import open_session
from edgekit.toolkit.datasets import load_dataset
from edgekit.toolkit.quantize.advice import Fingerprinted, Halves, Watch, convergence, duplicates, spread
from edgekit.toolkit.quantize.inputs import explain_pictures, moments_of
from edgekit.toolkit.quantize.mistakes import explain_answers, explain_golden
from edgekit.toolkit.quantize.observe import Batch
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from PIL import Image

GREY = Preprocess("L", 32, (32, 32), "bilinear", (0.305,), (0.323,))
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOUR = Preprocess("RGB", 16, (16, 16), "bilinear", *IMAGENET)


def _digits(count: int, seed: int = 0) -> ImageSet:
    return load_dataset("digits").train.stratified(count, seed)


def _tensors(images: ImageSet, preprocess: Preprocess = GREY) -> np.ndarray:
    return preprocess.batch([sample.image for sample in images])


def _photos(count: int, seed: int, tint: tuple[float, float, float] = (1.0, 0.8, 0.5)) -> np.ndarray:
    """Smooth random pictures, uint8 [n, 16, 16, 3], with the given share of each colour."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((count, 4, 4, 1)).repeat(4, axis=1).repeat(4, axis=2)
    noise = generator.normal(0, 0.05, (count, 16, 16, 3))
    return np.clip((coarse * tint + noise) * 255, 0, 255).astype(np.uint8)


def _golden(preprocess: Preprocess, pictures: np.ndarray, tensors: np.ndarray | None = None) -> Golden:
    images = ImageSet(("a",), tuple(map(str, range(len(pictures)))), np.zeros(len(pictures), np.int64), pictures)
    files = [images.encoded(index)[0] for index in range(len(images))]
    recorded = _tensors(images, preprocess) if tensors is None else tensors
    return Golden(files, recorded, np.zeros((len(files), 2), np.float32), np.zeros(len(files), np.uint32))


def _with(bundle: Bundle, mean: float, std: float) -> Bundle:
    """A bundle whose loader has another mean and std than its golden samples."""
    preprocess = dataclasses.replace(bundle.manifest.preprocess, mean=(mean,), std=(std,))
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, preprocess=preprocess))


def _watch(values: np.ndarray, images_per_batch: int = 4) -> Watch:
    """A watch that saw batches with these values [b, t, 2]."""
    watch = Watch(GREY, len(values) * images_per_batch)
    for number, batch_values in enumerate(values):
        ids = [f"{number}-{index}" for index in range(images_per_batch)]
        watch(Batch(np.zeros((images_per_batch, 1, 2, 2), np.float32), ids), batch_values)
    return watch


def test_good_images_cause_no_warning(fp32: Bundle, tmp_path: Path) -> None:
    """The advice is in the manifest."""
    result = quantize(fp32, QuantizeOptions(target="arm"), out=tmp_path / "made")
    assert not any(remark.startswith("warning") for remark in result.remarks if "slower" not in remark)
    advice = result.bundle.manifest.details["calibration"]["advice"]
    assert advice["mistake"] is None
    assert advice["duplicates"]["leaked"] == advice["duplicates"]["identical"] == 0
    assert advice["answers"]["correct"] > 110
    assert advice["inputs"]["mean"] == pytest.approx(GREY.mean, abs=0.02)
    assert advice["inputs"]["std"] == pytest.approx(GREY.std, abs=0.02)
    assert 0 < advice["convergence"]["stable_after"] <= 512
    assert advice["halves"]["images"] == 64
    assert advice["halves"]["changed"] <= 3


def test_an_unnormalised_loader_is_named(fp32: Bundle, tmp_path: Path) -> None:
    """Pixels from 0 to 255 instead of the recorded mean and std: the first remark has the mistake and its fix."""
    result = quantize(_with(fp32, 0.0, 1 / 255), QuantizeOptions(target="arm"), out=tmp_path / "made")
    assert "a division by 255 is missing in calibration" in result.remarks[0]
    assert "--mean 0.305 --std 0.323" in result.remarks[0]
    assert result.bundle.manifest.details["calibration"]["advice"]["mistake"] in result.remarks[0]


@pytest.mark.parametrize(
    ("recorded", "loader", "named"),
    [(IMAGENET, ((0.5,) * 3, (0.5,) * 3), "ImageNet's mean and std, unlike"),
     (((0.5,) * 3, (0.5,) * 3), IMAGENET, "mean 0.5 and std 0.5, unlike"),
     (((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), IMAGENET, "CIFAR-10's mean and std, unlike"),
     (((0.0,) * 3, (1.0,) * 3), IMAGENET, "pixels from 0 to 1, unlike"),
     (((0.0,) * 3, (1 / 255,) * 3), IMAGENET, "pixels from 0 to 255 (calibration divides by 255), unlike"),
     (IMAGENET, ((0.0,) * 3, (1 / 255,) * 3), "ImageNet's mean and std (a division by 255 is missing in calibration)"),
     (((0.3,) * 3, (0.2,) * 3), IMAGENET, "mean 0.3, 0.3, 0.3 and std 0.2, 0.2, 0.2, unlike")],
)  # fmt: skip
def test_the_mean_and_std_of_the_golden_samples_are_named(recorded: tuple, loader: tuple, named: str) -> None:
    """From the same pictures, so exactly; the fix has both as options."""
    before, now = (dataclasses.replace(COLOUR, mean=mean, std=std) for mean, std in (recorded, loader))
    golden = _golden(before, _photos(16, 0))
    sentence = explain_golden(golden, now)
    assert sentence is not None
    assert f"the golden samples were recorded with {named}" in sentence
    assert explain_golden(golden, before) is None


def test_reversed_channels_and_inverted_grey_of_golden_samples_are_named() -> None:
    """Each without a change of mean and std, and unexplained differences as such."""
    pictures = _photos(16, 0)
    reversed_tensors = _golden(COLOUR, np.ascontiguousarray(pictures[..., ::-1])).tensors
    sentence = explain_golden(_golden(COLOUR, pictures, reversed_tensors), COLOUR)
    assert sentence is not None
    assert "recorded with channels in the order BGR, unlike" in sentence
    grey = _digits(16).pictures
    assert isinstance(grey, np.ndarray)
    inverted = explain_golden(_golden(GREY, grey, _golden(GREY, 255 - grey).tensors), GREY)
    assert inverted is not None
    assert "recorded with inverted grey levels, unlike" in inverted
    other = explain_golden(_golden(COLOUR, pictures, _golden(COLOUR, _photos(16, 1)).tensors), COLOUR)
    assert other is not None
    assert "other preprocessing" in other


def test_a_decoders_rounding_is_no_mistake() -> None:
    """One grey level more or less in every pixel, as between two JPEG decoders."""
    pictures = _photos(16, 0)
    noise = np.random.default_rng(1).integers(-1, 2, pictures.shape)
    changed = np.clip(pictures.astype(int) + noise, 0, 255).astype(np.uint8)
    assert explain_golden(_golden(COLOUR, pictures, _golden(COLOUR, changed).tensors), COLOUR) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [(lambda pixels: pixels * 255, "a division by 255 is missing"),
     (lambda pixels: pixels * 255 * 0.323 + 0.305, "no mean and std (the division by 255 is missing)"),
     (lambda pixels: pixels * 0.323 + 0.305, "with no mean and std"),
     (lambda pixels: np.floor(pixels), "divided by 255 twice"),
     (lambda pixels: 1 - pixels, "inverted grey levels")],
)  # fmt: skip
def test_mistakes_in_calibration_inputs_are_named(change: Callable[[np.ndarray], np.ndarray], named: str) -> None:
    """Other images than the golden ones, with each mistake; without it, nothing is reported."""
    calibration, golden = _tensors(_digits(128)), _tensors(load_dataset("digits").test.stratified(16, 0))
    pixels = calibration.astype(np.float64) * 0.323 + 0.305
    sentence = explain_pictures(moments_of((change(pixels) - 0.305) / 0.323, GREY), golden, GREY)
    assert sentence is not None
    assert named in sentence
    assert explain_pictures(moments_of(calibration, GREY), golden, GREY) is None


def test_reversed_channels_are_named_only_if_the_statistics_show_it() -> None:
    """Tinted pictures show it, grey ones do not, and neither do pictures with another tint."""

    def moments(pictures: np.ndarray):
        return moments_of(_golden(COLOUR, pictures).tensors, COLOUR)

    warm = _golden(COLOUR, _photos(16, 0)).tensors
    sentence = explain_pictures(moments(np.ascontiguousarray(_photos(64, 1)[..., ::-1])), warm, COLOUR)
    assert sentence is not None
    assert "BGR" in sentence
    assert explain_pictures(moments(_photos(64, 1)), warm, COLOUR) is None
    assert explain_pictures(moments(_photos(64, 1, (0.9, 0.9, 1.0))), warm, COLOUR) is None
    grey = _golden(COLOUR, _photos(16, 0, (0.8, 0.8, 0.8))).tensors
    assert explain_pictures(moments(np.ascontiguousarray(_photos(64, 1)[..., ::-1])), grey, COLOUR) is None


@limits(max_examples=60)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 1000), st.sampled_from([8, 16, 64]))
def test_other_classes_are_no_mistake(golden_class: int, class_: int, seed: int, count: int) -> None:
    """Golden samples of one digit, calibration images of another, in any number."""
    train = load_dataset("digits").train
    generator = np.random.default_rng(seed)
    golden, calibration = (
        train.take(generator.choice(np.flatnonzero(train.targets == label), size, replace=False))
        for label, size in ((golden_class, 16), (class_, count))
    )
    for preprocess in (GREY, dataclasses.replace(GREY, mean=(0.0,), std=(1.0,), dtype="uint8")):
        moments = moments_of(_tensors(calibration, preprocess), preprocess)
        assert explain_pictures(moments, _tensors(golden, preprocess), preprocess) is None


@limits(max_examples=60)
@given(st.tuples(*[st.floats(0.4, 1.0)] * 3), st.tuples(*[st.floats(0.4, 1.0)] * 3), st.integers(0, 1000))
def test_other_light_is_no_mistake(
    tint: tuple[float, float, float], other: tuple[float, float, float], seed: int
) -> None:
    """Any two tints and brightnesses, unless one is the other's reverse: that cannot be told from reversed channels."""
    if max(abs(a - b) for a, b in zip(tint, other[::-1], strict=True)) < 0.15:
        return
    golden = _golden(COLOUR, _photos(16, seed, tint)).tensors
    calibration = _golden(COLOUR, _photos(64, seed + 1, other)).tensors
    sentence = explain_pictures(moments_of(calibration, COLOUR), golden, COLOUR)
    assert sentence is None or "BGR" in sentence


@pytest.mark.parametrize(
    ("mean", "std", "named"),
    [(0.0, 1 / 255, "the mean and std of these images (a division by 255 is missing in calibration)"),
     (0.5, 4.0, "the mean and std of these images")],
)  # fmt: skip
def test_a_mistake_that_golden_samples_share_shows_in_the_answers(
    fp32: Bundle, mean: float, std: float, named: str
) -> None:
    """As after an import with a wrong --mean and --std."""
    preprocess = _with(fp32, mean, std).manifest.preprocess
    images = _digits(128)
    inputs = moments_of(_tensors(images, preprocess), preprocess)
    answers = explain_answers(images, preprocess, open_session(fp32).run, inputs)
    assert answers.sentence is not None
    assert named in answers.sentence
    assert answers.corrected is not None
    assert answers.corrected > 110 > answers.correct
    assert not answers.plausible


def test_reversed_channels_show_in_the_answers() -> None:
    """A model that compares red and blue; on the right images no correction is tried."""
    warm, cold = _photos(40, 0), np.ascontiguousarray(_photos(40, 1)[..., ::-1])
    targets = np.repeat([0, 1], 40)
    images = ImageSet(("warm", "cold"), tuple(map(str, range(80))), targets, np.concatenate([warm, cold]))

    def tint(tensors: np.ndarray) -> np.ndarray:
        means = tensors.mean(axis=(2, 3))
        return np.stack([means[:, 0], means[:, 2]], axis=1)

    plain = dataclasses.replace(COLOUR, mean=(0.0,) * 3, std=(1.0,) * 3)
    for preprocess in (plain, dataclasses.replace(plain, dtype="uint8")):
        inputs = moments_of(_tensors(images, preprocess), preprocess)
        right = explain_answers(images, preprocess, tint, inputs)
        assert (right.correct, right.corrected, right.sentence) == (80, None, None)
        wrong = explain_answers(images, preprocess, lambda tensors: tint(tensors[:, ::-1]), inputs)
        assert wrong.sentence is not None
        assert "channels in the order BGR" in wrong.sentence
        assert (wrong.correct, wrong.corrected) == (0, 80)


def test_inverted_inputs_show_in_the_answers(fp32: Bundle) -> None:
    """The golden samples cannot show it if the model was imported with such images."""
    digits = _digits(128)
    images = dataclasses.replace(digits, pictures=255 - np.asarray(digits.pictures))
    answers = explain_answers(images, GREY, open_session(fp32).run, moments_of(_tensors(images), GREY))
    assert answers.sentence is not None
    assert "inverted pixels (1 - x)" in answers.sentence


def test_a_model_that_guesses_is_not_explained(fp32: Bundle) -> None:
    """No correction helps: the best of several bad ones is not named."""
    images = dataclasses.replace(_digits(128), targets=np.random.default_rng(0).integers(0, 10, 128))
    inputs = moments_of(_tensors(images), GREY)
    answers = explain_answers(images, GREY, open_session(fp32).run, inputs)
    assert not answers.plausible
    assert answers.sentence is None


def test_answers_take_the_models_batch(fp32: Bundle) -> None:
    """A fixed batch is filled as far as the images go."""
    sizes = []

    def run(tensors: np.ndarray) -> np.ndarray:
        sizes.append(len(tensors))
        return open_session(fp32).run(tensors)

    images = _digits(40)
    explain_answers(images, GREY, run, moments_of(_tensors(images), GREY), batch=16)
    assert sizes == [16, 4, 16, 4]


def test_ranges_that_converge_early() -> None:
    """All values are in the first batches; the number of images is the first checkpoint after them."""
    values = np.tile([-1.0, 1.0], (64, 10, 1))
    values[0] *= 0.5
    found = convergence(_watch(values).widths)
    assert found.images == 256
    assert 4 < found.stable_after <= 12
    assert found.half_width == 1.0
    assert found.warning is None


def test_ranges_that_never_converge() -> None:
    """Every batch is wider than those before it: a warning names a larger number of images."""
    values = np.arange(1, 65)[:, None, None] * np.array([-1.0, 1.0]) * np.ones((1, 10, 1))
    found = convergence(_watch(values).widths)
    assert found.half_width == pytest.approx(0.5, abs=0.02)
    assert found.stable_after == 256
    assert found.warning is not None
    assert found.warning.startswith("warning: the ranges still grow")
    assert "--calibration-images 512" in found.warning


def test_constant_activations_are_stable() -> None:
    """A range without width, from the first batch on."""
    watch = _watch(np.zeros((8, 3, 2)))
    assert convergence(watch.widths).half_width == 1.0
    halves = spread(watch.halves, ["a", "b", "c"])
    assert halves is not None
    assert halves.largest == 0


def test_the_halves_are_compared() -> None:
    """Every other batch; the warning names the worst activation. One batch alone has no halves."""
    values = np.tile([-1.0, 1.0], (16, 3, 1))
    values[::2, 0] *= 4
    uneven = spread(_watch(values).halves, ["first", "second", "third"])
    assert uneven is not None
    assert (uneven.activation, uneven.largest, uneven.median) == ("first", 0.75, 0.0)
    assert uneven.warning is None
    values[1::2, 1] *= 4
    halves = spread(_watch(values).halves, ["first", "second", "third"])
    assert halves is not None
    assert halves.warning is not None
    assert "first: 75%" in halves.warning
    assert spread(_watch(values[:1]).halves, ["first", "second", "third"]) is None


def test_answers_that_depend_on_the_images_are_reported() -> None:
    """If more than a tenth of them differ between the models of two halves."""
    assert Halves(64, 6).warning is None
    warning = Halves(64, 7).warning
    assert warning is not None
    assert "7 of 64 answers differ" in warning


def test_the_halves_ranges_are_named() -> None:
    """Of every other batch; there are none if all images came in one batch."""
    values = np.array([[[-1.0, 2.0]], [[-3.0, 1.0]], [[0.0, 4.0]]])
    assert _watch(values).half_ranges(["first"]) == [{"first": (-1.0, 4.0)}, {"first": (-3.0, 1.0)}]
    assert _watch(values[:1]).half_ranges(["first"]) == []


def test_padding_is_not_counted() -> None:
    """A last batch that repeats its last image."""
    watch = Watch(GREY, 5)
    values = np.array([[0.0, 1.0]])
    watch(Batch(np.zeros((4, 1, 2, 2), np.float32), list("abcd")), values)
    watch(Batch(np.ones((4, 1, 2, 2), np.float32), list("eeee")), values)
    assert convergence(watch.widths).images == watch.inputs.moments().images == 5
    assert watch.inputs.moments().mean == pytest.approx([0.305 + 0.323 / 5])


def _fingerprinted(images: ImageSet) -> Fingerprinted:
    return Fingerprinted(images.ids, fingerprint(images))


def test_duplicates_are_counted(tmp_path: Path) -> None:
    """Identical files, and a resized copy; different images are neither."""
    photos = _photos(20, 0).repeat(8, axis=1).repeat(8, axis=2)
    for index, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{index:02}.png")
    for copy in ("20", "21"):
        Image.fromarray(photos[0]).save(tmp_path / f"{copy}.png")
    Image.fromarray(photos[1]).resize((96, 96)).save(tmp_path / "22.jpg", quality=90)
    files = sorted(tmp_path.iterdir())
    images = ImageSet(("a",), tuple(path.name for path in files), np.zeros(len(files), np.int64), files)
    found = duplicates(_fingerprinted(images), {})
    assert (found.images, found.identical, found.alike, found.leaked) == (23, 2, 1, 0)
    assert len(found.warnings) == 1
    assert "2 of 23 calibration images are identical to others" in found.warnings[0]
    assert duplicates(_fingerprinted(images.take(range(20))), {}).warnings == []


def test_a_leak_is_named_by_part(tmp_path: Path) -> None:
    """An identical image is a warning with both names; a resized one is only recorded, until there are many."""
    photos = _photos(40, 0).repeat(8, axis=1).repeat(8, axis=2)
    calibration = ImageSet(("a",), tuple(f"c{index}" for index in range(30)), np.zeros(30, np.int64), photos[:30])
    resized = np.stack([np.asarray(Image.fromarray(photo).resize((96, 96))) for photo in photos[:10]])
    test = ImageSet(("a",), tuple(f"t{index}" for index in range(11)), np.zeros(11, np.int64), photos[29:])
    copies = ImageSet(("a",), tuple(f"v{index}" for index in range(10)), np.zeros(10, np.int64), resized)
    found = duplicates(_fingerprinted(calibration), {"test": _fingerprinted(test)})
    assert (found.leaked, found.leaked_alike, found.examples) == (1, 0, ("c29 is t0 of the test images",))
    assert "1 of 30 calibration images are evaluation images: c29 is t0" in found.warnings[0]
    one = duplicates(_fingerprinted(calibration), {"validation": _fingerprinted(copies.take([0]))})
    assert (one.leaked, one.leaked_alike, one.warnings) == (0, 1, [])
    many = duplicates(_fingerprinted(calibration), {"validation": _fingerprinted(copies)})
    assert many.leaked_alike == 10
    assert "look like evaluation images: c0 is like v0 of the validation images" in many.warnings[0]


def test_a_leaked_evaluation_image_is_found(fp32: Bundle, tmp_path: Path) -> None:
    """A validation image that is also in the training folder: quantize warns, and names both files."""
    digits = load_dataset("digits")
    for part, images in (("train", digits.train.take(range(120))), ("val", digits.validation.take(range(60)))):
        for label in images.labels:
            (tmp_path / "data" / part / label).mkdir(parents=True)
        for index, sample in enumerate(images):
            sample.image.save(tmp_path / "data" / part / images.labels[sample.label] / f"{index}.png")
    (tmp_path / "data" / "test" / "0").mkdir(parents=True)
    digits.test[0].image.save(tmp_path / "data" / "test" / "0" / "0.png")
    leaked = next((tmp_path / "data" / "val").rglob("0.png"))
    copy = tmp_path / "data" / "train" / leaked.parent.name / "leak.png"
    copy.write_bytes(leaked.read_bytes())
    result = quantize(fp32, QuantizeOptions(target="arm"), images=str(tmp_path / "data"), out=tmp_path / "made")
    warning = next(remark for remark in result.remarks if "evaluation images" in remark)
    assert warning.startswith("warning: 1 of 121 calibration images are evaluation images: ")
    assert f"train/{leaked.parent.name}/leak.png is val/{leaked.parent.name}/0.png of the selection images" in warning
