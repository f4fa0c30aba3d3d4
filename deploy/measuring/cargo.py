"""What travels to a device: EdgeKit's code, bundles and test images, each as one zip file named by its hash."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypedDict

from ..bundle import Bundle
from ..documents import plain
from ..engine.build import Options
from ..engine.passport import ENGINE_FORMAT
from ..errors import BundleError
from ..files import new_folder, sha256
from ..images import ImageSet
from ..manifest import MANIFEST
from . import agent
from .plan import Plan, PlanEntry

PACKAGE = Path(__file__).parents[2]

# The earliest time that a zip file can store. With a fixed time, the same content gives the same file.
EPOCH = (1980, 1, 1, 0, 0, 0)

# A bundle has about twenty files.
_MAX_FILES = 1000

# (name in the zip, file)
Files = Iterator[tuple[str, Path]]


@dataclass(frozen=True)
class Parcel:
    """A zip file to send: its path, the hash of its content, which is also its name, and its size in bytes."""

    path: Path
    sha256: str
    size: int


def parcel(files: Files, folder: Path) -> Parcel:
    """Write files to an uncompressed zip file in `folder`; models and images hardly compress."""
    path = folder / "new"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        add_files(archive, files)
    digest = sha256(path)
    return Parcel(path.rename(folder / digest), digest, (folder / digest).stat().st_size)


def add_files(archive: zipfile.ZipFile, files: Files) -> None:
    """Add files to a zip file, without their times and owners."""
    for name, file in files:
        archive.writestr(zipfile.ZipInfo(name, EPOCH), file.read_bytes())


def code(*parts: str) -> Files:
    """EdgeKit's own code: the root module, and the folders and modules in `parts`."""
    yield "edgekit/__init__.py", PACKAGE / "__init__.py"
    for part in parts:
        source = PACKAGE / part
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            yield f"edgekit/{file.relative_to(PACKAGE).as_posix()}", file


def bundle_files(bundle: Bundle, folder: str) -> Files:
    """A bundle's files."""
    for name in (MANIFEST, *sorted(bundle.manifest.files)):
        yield f"{folder}/{name}", bundle.path / name


def image_files(images: ImageSet, scratch: Path) -> Files:
    """An image set's files in their original encoding, saved to a scratch folder first."""
    with tempfile.TemporaryDirectory(dir=scratch) as saved:
        images.save(Path(saved), with_files=True)
        for file in sorted(Path(saved).iterdir()):
            yield f"{agent.IMAGES}/{file.name}", file


class Job(TypedDict):
    """A measurement to make: bundle id -> folder, the plan, and the device's name; null is this machine."""

    bundles: Mapping[str, str]
    plan: PlanEntry
    device: str | None


class BuildEntry(TypedDict):
    """An engine to build: the ONNX bundle's folder, the user's name for it, and engine.build.Options."""

    bundle: str
    named: str
    options: Mapping[str, object]


class BuildJob(TypedDict):
    """A job that builds an engine."""

    build: BuildEntry


def job(bundles: Sequence[Bundle], plan: Plan, device: str | None = None) -> Job:
    """The content of job.json for bundles that travel with it; `device` None is this machine."""
    return {"bundles": {bundle.id: bundle_folder(bundle) for bundle in bundles}, "plan": plain(plan), "device": device}


def build_job(bundle: Bundle, options: Options, folder: str) -> BuildJob:
    """The content of job.json for an engine to build from the bundle in this folder."""
    return {"build": {"bundle": folder, "named": str(bundle.path), "options": asdict(options)}}


def unpack_bundles(source: Path | IO[bytes], folder: Path, most: int, where: str) -> list[Path]:
    """Unpack the bundles of an untrusted zip file into a new folder; returns their folders.

    Args:
        most: maximum total size in bytes.
        where: the source of the file, for messages.

    Raises:
        BundleError: there are no bundles, an entry would lie outside its bundle's folder, or they are too large.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.startswith("bundles")]
            names = [entry.filename.split("/") for entry in entries]
            sound = all(
                name[0] == "bundles" and len(name) > 2 and not {"", ".", ".."} & {*name} and "\\" not in "".join(name)
                for name in names
            )
            if not entries or not sound or len({entry.filename for entry in entries}) < len(entries):
                raise BundleError(
                    f"{where} contains something that is not a bundle", fix="do not trust it; get it again"
                )
            if len(entries) > _MAX_FILES or sum(entry.file_size for entry in entries) > most:
                raise BundleError(f"{where} unpacks to more than {most} bytes", fix="do not trust it; get it again")
            archive.extractall(folder, entries)  # no more of an entry than its declared size
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise BundleError(f"{where} cannot be unpacked: {error}", fix="get it again") from error
    return sorted((folder / "bundles").iterdir())


def adopt(folder: Path, source: Bundle, out: Path) -> None:
    """Adopt an engine that a device built, after checking every file against its manifest.

    Args:
        source: the bundle that it has to be built from.

    Raises:
        BundleError: the engine is damaged, or was not built from `source`.
        EdgeKitError: `out` cannot be written.
    """
    built = Bundle.open(folder).manifest
    if built.format != ENGINE_FORMAT or [step["id"] for step in built.lineage[-1:]] != [source.id]:
        raise BundleError(f"the device did not return an engine of {source.path}", fix="do not trust this device")
    with new_folder(out) as new:
        for name in (MANIFEST, *built.files):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, new / name)


def bundle_folder(bundle: Bundle) -> str:
    """A bundle's folder within a job."""
    return f"bundles/{bundle.id}"
