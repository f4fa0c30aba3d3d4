"""Recipes: every setting of a training run, read from TOML with strict checks."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...deploy.documents import DocumentError
from ...deploy.errors import RecipeError, unknown
from ...deploy.manifest import check_name
from ...models.network import LIBRARIES, MODELS
from ..workspace import safe_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports] # only installed where it is needed


# A recipe has about forty lines.
_MAX_BYTES = 1 << 20

_SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class DataSettings:
    """Which images to use, and how to divide them (see datasets.load_dataset).

    Attributes:
        cache: keep decoded images in memory, if they fit and do not differ between epochs.
    """

    data: str = "digits"
    root: str | None = None
    seed: int = 0
    validation: float = 1 / 6
    skip_corrupt: bool = False
    cache: bool = True


@dataclass(frozen=True)
class ModelSettings:
    """Which network to train (see models.network.create_network).

    Attributes:
        pretrained: start from the library's published weights, with their preprocessing.
        weights: start from the weights of this bundle, with its preprocessing; a classifier of other classes is new.
        freeze: train only the classifier for this number of epochs.
    """

    name: str = "convnet"
    activation: str = "relu"
    pretrained: bool = False
    weights: str | None = None
    freeze: int = 0


@dataclass(frozen=True)
class PreprocessSettings:
    """How an image becomes the network's input; "auto" takes what the weights that training starts from were trained
    with, else chooses by the training images (see choose_preprocess.py).

    Attributes:
        size: height and width in pixels, 0 for auto.
        resize: length of the shorter side before the crop in pixels, 0 for auto.
        mean, std: one value per channel on the scale [0, 1]; empty for auto.
    """

    mode: Literal["auto", "RGB", "L"] = "auto"
    size: int = 0
    resize: int = 0
    interpolation: str = "auto"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes of training images, all off by default.

    Attributes:
        resized_crop: smallest share of the area that a random resized crop retains, 0 for no crop.
        pad_crop: pixels of padding before a random crop, 0 for no crop.
        horizontal_flip: probability of a flip.
        colour: strength of brightness, contrast and saturation changes.
        erase: probability of erasing a rectangle (Random Erasing, Zhong et al., 2017).
        mixup, cutmix: the parameter of the beta distribution, 0 for none; with both, each step uses one of them.
    """

    resized_crop: float = 0.0
    pad_crop: int = 0
    horizontal_flip: float = 0.0
    colour: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class TrainSettings:
    """How the network is trained.

    Attributes:
        batch_size: largest number of images per step, over all processes.
        accumulate: compute the gradient of a step in this number of parts, which takes less memory.
        lr: learning rate; for one-cycle, its peak.
        step_size, gamma: for the step schedule: the rate is multiplied by `gamma` every `step_size` epochs.
        warmup: the rate rises for this number of epochs; one-cycle has its own rise.
        clip: largest norm of the gradient, 0 for no limit.
        class_weights: "balanced" weights the loss of an image by the inverse of its class's number of images.
        teacher: a trained bundle of the same classes, whose probabilities the network learns.
        teacher_weight: the share of the teacher in the loss; the labels have the rest.
        temperature: softens the probabilities of both, so that the teacher's small ones count.
        ema: decay per step of the exponential moving average of the weights, which is then the result; 0 for none.
        patience: stop after this number of epochs without a better validation accuracy, 0 for never.
        sync_batchnorm: BatchNorm takes its statistics from the images of all processes (GPUs only).
        deterministic: use only algorithms that give the same bits in each run, which may be slower on a GPU.
        compile: compile the network with torch.compile.
        workers: loader processes per part; -1 is auto: none for arrays or for few or small files (see screening.py).
        device: auto, cpu or cuda.
        tensorboard: also write the metrics of each epoch as TensorBoard events into the run's folder.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine", "one-cycle", "constant"] = "one-cycle"
    step_size: int = 10
    gamma: float = 0.9
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    teacher: str | None = None
    teacher_weight: float = 0.5
    temperature: float = 4.0
    ema: float = 0.0
    patience: int = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = -1
    seed: int = 0
    sync_batchnorm: bool = False
    deterministic: bool = False
    compile: bool = False
    tensorboard: bool = False


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run."""

    name: str = "model"
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    @classmethod
    def load(cls, name: str, settings: Iterable[str] = ()) -> "Recipe":
        """Read a shipped recipe by its name, or a file, then change single settings ("train.lr=0.01").

        Raises:
            RecipeError: there is no such recipe, a key is unknown, or a value is of the wrong type or out of range.
        """
        data = read_recipe(name)
        if "sweep" in data:
            raise RecipeError(f"{name} describes a sweep", fix=f"edgekit train --sweep {name}")
        return cls.from_dict(data).changed(settings)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Recipe":
        """Build a recipe from nested plain values.

        Raises:
            RecipeError: a key is unknown, or a value is of the wrong type or out of range.
        """
        recipe = _build(cls, data, "")
        _check(recipe)
        return recipe

    def changed(self, settings: Iterable[str]) -> "Recipe":
        """A recipe with "section.key=value" settings applied; values are TOML, or bare words."""
        return self.with_values(dict(parse_setting(setting) for setting in settings))

    def with_values(self, values: Mapping[str, object]) -> "Recipe":
        """A recipe with other values, by keys such as "train.lr" or "name".

        Raises:
            RecipeError: a key is unknown, or a value is of the wrong type or out of range.
        """
        data = asdict(self)
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            if section and not isinstance(data.get(section), dict):
                sections = [entry for entry in data if isinstance(data[entry], dict)]
                raise RecipeError(unknown("recipe section", section, sections), fix="see edgekit train --help")
            (data[section] if section else data)[name] = value
        return Recipe.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as from_dict reads them."""
        return asdict(self)


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(file.stem for file in _SHIPPED.glob("*.toml"))


def for_model(model: str) -> Recipe:
    """The shipped recipe of a network, or the default recipe."""
    recipe = Recipe.load(model) if model in shipped() else Recipe()
    return Recipe.from_dict({**recipe.to_dict(), "model": asdict(replace(recipe.model, name=model))})


def read_recipe(name: str) -> dict[str, object]:
    """The unchecked content of a shipped recipe or of a file, with the file's name as the recipe's default name.

    Raises:
        RecipeError: there is no such recipe, or it is not TOML.
    """
    path = Path(name)
    if name in shipped():
        text = (_SHIPPED / f"{name}.toml").read_text()
    elif path.suffix == ".toml" and path.is_file():
        text = _read(path)
    else:
        raise RecipeError(unknown("recipe", name, shipped()), fix="pass a shipped recipe's name or a .toml file")
    return {"name": safe_name(path.stem), **_parse(text, name)}


def parse_setting(setting: str) -> tuple[str, object]:
    """Key and value of "train.lr=0.01"; the value is TOML, or a bare word.

    Raises:
        RecipeError: there is no equals sign.
    """
    key, equals, value = setting.partition("=")
    if not equals:
        raise RecipeError(f"cannot read the setting {setting!r}", fix="write it as --set train.lr=0.01")
    return key.strip(), _value(value.strip())


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{path} is larger than {_MAX_BYTES} bytes", fix="pass a recipe")
        return content.decode("utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}", fix="pass a recipe that you can read") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"cannot read {path}: {error}", fix="save it as text in UTF-8") from error


def _parse(text: str, where: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:  # ValueError for an overlong number
        raise RecipeError(f"{where} is not valid TOML: {error}", fix="correct that line") from error


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text


def _build(kind: type, data: Mapping[str, object], where: str) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for key, value in data.items():
        if key not in hints:
            raise RecipeError(unknown("recipe key", f"{where}{key}", [f"{where}{name}" for name in hints]),
                              fix="correct the key")  # fmt: skip
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}{key} must be a section", fix=f"write [{key}] and its keys below it")
            values[key] = _build(hints[key], value, f"{where}{key}.")  # type: ignore[arg-type]
        else:
            values[key] = _typed(hints[key], value, f"{where}{key}")
    return kind(**values)


def _typed(hint: object, value: object, where: str) -> object:
    """The value as its field's type; only ints are converted to floats and lists to tuples."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise RecipeError(unknown(where, str(value), [str(choice) for choice in get_args(hint)]),
                              fix=f"choose one of: {', '.join(map(str, get_args(hint)))}")  # fmt: skip
        return value
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(float, entry, where) for entry in value)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    for kind in kinds:
        if type(value) is kind:
            return value
    wanted = getattr(kinds[0], "__name__", "tuple")
    raise RecipeError(
        f"{where} must be of type {wanted}, not {value!r}", fix=f"set {where} to a value of type {wanted}"
    )


def _check(recipe: Recipe) -> None:
    """Refuse values that have the right type but make no sense."""
    train, augment = recipe.train, recipe.augment
    rules = {
        "train.epochs must be 1 or more": train.epochs >= 1,
        "train.batch_size must be 1 or more": train.batch_size >= 1,
        "train.accumulate must be from 1 to train.batch_size": 1 <= train.accumulate <= train.batch_size,
        "train.lr must be positive": 0 < train.lr < float("inf"),
        "train.step_size must be 1 or more": train.step_size >= 1,
        "train.weight_decay must not be negative": train.weight_decay >= 0,
        "train.momentum must be from 0 to 1": 0 <= train.momentum < 1,
        "train.label_smoothing must be from 0 to 1": 0 <= train.label_smoothing < 1,
        "train.clip must not be negative": train.clip >= 0,
        "train.warmup must be from 0 to train.epochs": 0 <= train.warmup < train.epochs,
        "train.warmup is a part of the schedule one-cycle": not (train.warmup and train.schedule == "one-cycle"),
        "train.ema must be from 0 to 1": 0 <= train.ema < 1,
        "train.teacher_weight must be from 0 to 1": 0 <= train.teacher_weight <= 1,
        "train.temperature must be positive": 0 < train.temperature < float("inf"),
        "model.freeze must be from 0 to train.epochs": 0 <= recipe.model.freeze <= train.epochs,
        "model.pretrained and model.weights exclude each other": not (recipe.model.pretrained and recipe.model.weights),
        "model.freeze is for pretrained weights": not recipe.model.freeze
        or recipe.model.pretrained
        or bool(recipe.model.weights),
        "train.patience must not be negative": train.patience >= 0,
        "data.validation must be between 0 and 1": 0 < recipe.data.validation < 1,
        "augment.resized_crop must be from 0 to 1": 0 <= augment.resized_crop <= 1,
        "augment.pad_crop must not be negative": augment.pad_crop >= 0,
        "augment.horizontal_flip must be from 0 to 1": 0 <= augment.horizontal_flip <= 1,
        "augment.colour must not be negative": augment.colour >= 0,
        "augment.erase must be from 0 to 1": 0 <= augment.erase <= 1,
        "augment.mixup and cutmix must not be negative": min(augment.mixup, augment.cutmix) >= 0,
        "preprocess.size and resize must not be negative": min(recipe.preprocess.size, recipe.preprocess.resize) >= 0,
    }
    for rule, met in rules.items():
        if not met:
            raise RecipeError(rule, fix="correct the value in the recipe or in --set")
    try:
        check_name(recipe.name)
    except DocumentError as error:
        raise RecipeError(str(error), fix='e.g. name = "my-model"') from error
    library, _, name = recipe.model.name.partition(":")
    if recipe.model.name not in MODELS and not (library in LIBRARIES and name):
        raise RecipeError(
            unknown("model", recipe.model.name, MODELS),
            fix=f"choose {', '.join(MODELS)}, torchvision:NAME or timm:NAME",
        )
