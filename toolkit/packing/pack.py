"""Packing a model into one file that any Python runs: bundle, golden samples, test images and the agent."""

import errno
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ...deploy.bundle import Bundle
from ...deploy.errors import BundleError
from ...deploy.files import exists, new_folder, scratch_folder, write_file
from ...deploy.images import ImageSet
from ...deploy.measuring import agent, cargo
from ...deploy.measuring.measurement import Environment
from ...deploy.measuring.plan import Plan
from ...deploy.measuring.result import Result, ids_and_targets
from ...deploy.runtimes.runtime import Choice, all_runtimes, require_options_used, runtime_named
from ...deploy.session import runtime_for
from ..analysis.contract import Contract
from ..datasets import own_images, part_of
from ..signing import PACKED_MODEL, sign, verify
from ..validation.ancestors import with_ancestors
from ..validation.candidates import candidates_of, runtimes_of, with_baseline
from ..validation.overlap import unseen
from .on_device import PACKED
from .zipapp_main import HASH_DIGITS, NEEDS, SIGNATURE_DIGITS

# The format that runs without the network's code and without a GPU.
PACKED_FORMAT = "onnx"

_SHEBANG = b"#!/usr/bin/env python3\n"
_STUB = b"import zlib;exec(zlib.decompress(bytes.fromhex('%b')))"

# The code that measures and makes the report; the report needs no package but numpy.
_CODE = ("deploy", "toolkit/__init__.py", "toolkit/analysis", "toolkit/packing")


# A placeholder for the environment of the machine that runs the file.
_NOT_MEASURED: Environment = {"cores_allowed": 1, "cores_got": 1.0, "before": {}, "after": {}, "isa": []}


@dataclass(frozen=True)
class PackOptions:
    """Further content of a packed file.

    Attributes:
        runtimes: the runtimes that will run the models (see ValidateOptions).
        sign: an ed25519 private key to sign the file with.
        skip_corrupt: leave out test images that cannot be decoded.
    """

    runtimes: Sequence[str] = ()
    sign: Path | None = None
    skip_corrupt: bool = False


class Packed(NamedTuple):
    """The content of a packed file, the digest that is signed, and the signature or None."""

    content: bytes
    digest: bytes
    signature: bytes | None


def pack(
    bundles: Sequence[Bundle],
    options: PackOptions | None = None,
    *,
    out: Path | None = None,
    baseline: Bundle | None = None,
    images: str | None = None,
    limit: int = 200,
    contract: Contract | None = None,
    plan: Plan | None = None,
) -> Path:
    """Write one file that validates the models on any machine with Python and ONNX Runtime; returns its path.

    Args:
        bundles: the candidates; the models that they were made from are included if available.
        out: the file to write; None is NAME.pyz of the last candidate in the current folder.
        baseline: the only model to compare with, instead of those.
        images: source of the test images; None is the first bundle's own test part.
        limit: number of test images to include, drawn by class.

    Raises:
        BundleError: the bundles do not belong together.
        DeviceError: a bundle is not ONNX.
        EdgeKitError: `out` exists or cannot be written, or the key cannot be read.
    """
    chain = with_ancestors(bundles, baseline, {PACKED_FORMAT}, "a packed file")
    options = options or PackOptions()
    choices, judged = [Choice.parse(text) for text in options.runtimes], {bundle.id for bundle in bundles}
    runtimes = [runtime.name for runtime in all_runtimes() if runtime.boards and PACKED_FORMAT in runtime.formats]
    named = candidates_of(chain, judged, choices, runtimes, "a packed file")
    candidates = with_baseline(named, chain)
    plan = replace(plan or Plan(), candidates=candidates if choices else ())
    require_options_used(plan.options, runtimes_of(chain, candidates))
    test = part_of(bundles[0], "test", images, skip_corrupt=options.skip_corrupt)
    if test is not None:
        test, _ = unseen(bundles, test, own=own_images(bundles[0], images), limit=limit)
    path = out or Path(f"{bundles[-1].manifest.name}.pyz")
    keys = [candidate.key for candidate in named if candidate.bundle in judged]
    write_packed(chain, keys, test, plan, contract or Contract(), path, options.sign)
    return path


def write_packed(
    chain: Sequence[Bundle], candidates: Sequence[str], images: ImageSet | None, plan: Plan, contract: Contract,
    out: Path, key: Path | None = None,
) -> None:  # fmt: skip
    """Write a Python zip application that validates the models wherever it is run.

    Args:
        chain: the models, the baseline first.
        candidates: keys of the candidates that the contract applies to.
        key: an ed25519 private key to sign it with.

    Raises:
        EdgeKitError: `out` exists or cannot be written, or `key` is not a private key.
    """
    if out.exists():
        raise exists(out)
    ids, targets = ids_and_targets(images)
    result = Result("", chain, candidates, plan, asdict(contract), ids, targets, _NOT_MEASURED, []).to_json()
    stream = io.BytesIO()
    stream.write(_SHEBANG)
    with scratch_folder() as scratch, zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        main = zipfile.ZipInfo("__main__.py", cargo.EPOCH)
        archive.writestr(main, _guarded((cargo.PACKAGE / "toolkit/packing/zipapp_main.py").read_bytes()))
        cargo.add_files(archive, cargo.code(*_CODE))
        for bundle in chain:
            cargo.add_files(archive, cargo.bundle_files(bundle, cargo.bundle_folder(bundle)))
        if images is not None:
            cargo.add_files(archive, cargo.image_files(images, scratch))
        texts = {
            agent.JOB: json.dumps(cargo.job(chain, plan)),
            PACKED: json.dumps(result),
            NEEDS: json.dumps(_needs(chain, plan)),
        }
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, cargo.EPOCH), text)
        archive.comment = b"-" * (SIGNATURE_DIGITS + HASH_DIGITS)
    content = stream.getvalue()[: -SIGNATURE_DIGITS - HASH_DIGITS]
    digest = hashlib.sha256(content).digest()
    content += sign(digest, key, PACKED_MODEL).hex().encode() if key else b"-" * SIGNATURE_DIGITS
    write_file(out, content + hashlib.sha256(content).hexdigest().encode(), replace=False)
    out.chmod(0o755)


def _needs(chain: Sequence[Bundle], plan: Plan) -> list[tuple[tuple[str, ...], str]]:
    """The requirements of the file: modules, any one of which suffices, and the package that provides them."""
    bundles = {bundle.id: bundle for bundle in chain}
    used = {
        runtime_for(bundles[candidate.bundle], candidate.choice and candidate.choice.name).name: None
        for candidate in plan.measured(bundles)
    }
    packages = [package for name in used for package in runtime_named(name).packages[:1]]
    return [
        (("numpy",), "numpy"), (("PIL",), "pillow"),
        *((package.modules, package.distributions[0]) for package in packages),
    ]  # fmt: skip


def _guarded(program: bytes) -> bytes:
    """Encode a program so that it fails if any bit is flipped, which Python's import from zip files does not detect.

    The result is one statement of hexadecimal digits, not compressed. A flipped bit changes one character, which breaks
    the syntax, a name, or the checksum (Adler-32) that zlib verifies. Truncated anywhere, it is not a valid statement.
    It is padded to a size that no single flipped bit in the zip directory can reduce to nothing.
    """
    digits = zlib.compress(program, 9).hex().encode()
    size = len(_STUB) + len(digits)
    padded = -(-size // 0x600) * 0x600
    return _STUB % (digits + b" " * (padded - size + len(b"%b")))


def verify_packed(path: Path, key: Path) -> Packed:
    """Read a packed file and verify its maker's signature, which covers every byte.

    Raises:
        BundleError: it is damaged, not signed, or signed by another key.
    """
    packed = _read(path)
    if packed.signature is None:
        raise BundleError(f"{path} is not signed", fix="ask its maker for a signed one: edgekit pack --sign KEY")
    if not verify(packed.digest, packed.signature, key, PACKED_MODEL):
        raise BundleError(f"{path} is not signed by the owner of {key}", fix="do not use it; ask its maker")
    return packed


def unpack(packed: Packed, out: Path) -> list[Path]:
    """Write the bundles of a packed file into a new folder, and check every file's hash.

    Raises:
        BundleError: a bundle is damaged.
        EdgeKitError: `out` exists or cannot be written.
    """
    with new_folder(out) as folder:
        # they are stored uncompressed, so they take no more space than the file
        for path in cargo.unpack_bundles(io.BytesIO(packed.content), folder, len(packed.content), "the packed file"):
            bundle = Bundle.open(path)
            path.rename(
                folder / f"{bundle.manifest.name}-{bundle.manifest.format}-{bundle.manifest.precision}-{bundle.id}"
            )
        (folder / "bundles").rmdir()
    return sorted(out.iterdir())


def _read(path: Path) -> Packed:
    try:
        if not path.is_file():  # opening a FIFO would block
            raise OSError(errno.EINVAL, "it is not a file")
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", fix="pass a file that edgekit pack wrote") from error
    body, stored = content[:-HASH_DIGITS], content[-HASH_DIGITS:]
    if not content.startswith(_SHEBANG) or hashlib.sha256(body).hexdigest().encode() != stored:
        raise BundleError(f"{path} is damaged, or not a packed model", fix="copy it again, or pack it again")
    signature, signed = body[-SIGNATURE_DIGITS:], None
    if signature != b"-" * SIGNATURE_DIGITS:
        try:
            signed = bytes.fromhex(signature.decode("ascii"))
        except ValueError:
            raise BundleError(f"{path} is not a packed model", fix="get it again from its maker") from None
    return Packed(content, hashlib.sha256(body[:-SIGNATURE_DIGITS]).digest(), signed)
