"""Ed25519 signatures (RFC 8032) by the cryptography package."""

import hashlib
from pathlib import Path

from ..deploy.bundle import Bundle
from ..deploy.errors import BundleError, EdgeKitError
from ..deploy.files import write_file
from ..deploy.manifest import MANIFEST, SIGNATURE

_SIGNATURE_BYTES = 64

# Contexts, so that a signature for one kind of file is never valid for another.
PACKED_MODEL, _BUNDLE = b"edgekit packed model 1\0", b"edgekit bundle 1\0"


def check_key(key: Path) -> None:
    """Check that a private key can sign, before the work whose result it will sign.

    Raises:
        EdgeKitError: see `sign`.
    """
    sign(bytes(32), key, b"edgekit tries a key 1\0")


def sign_bundle(path: Path, key: Path) -> None:
    """Sign a bundle's manifest, which contains the hash of every file. The signature is written beside it.

    Raises:
        EdgeKitError: see `sign`.
    """
    digest = hashlib.sha256((path / MANIFEST).read_bytes()).digest()
    write_file(path / SIGNATURE, sign(digest, key, _BUNDLE))


def verify_bundle(bundle: Bundle, key: Path) -> None:
    """Refuse a bundle that is not signed by the owner of a public key.

    Raises:
        BundleError: it has no signature, or someone else's.
        EdgeKitError: see `verify`.
    """
    path = bundle.path / SIGNATURE
    try:
        if path.is_symlink() or not path.is_file():  # opening a FIFO would block
            raise FileNotFoundError(path)
        with path.open("rb") as stream:
            signature = stream.read(_SIGNATURE_BYTES + 1)
    except OSError:
        raise BundleError(
            f"{bundle.path} is not signed", fix="sign it with edgekit build --sign key, or leave out --verify"
        ) from None
    digest = hashlib.sha256((bundle.path / MANIFEST).read_bytes()).digest()
    if not verify(digest, signature, key, _BUNDLE):
        raise BundleError(f"{bundle.path} is not signed by the owner of {key}", fix="do not use it; ask its author")


def sign(digest: bytes, key: Path, context: bytes) -> bytes:
    """Sign a SHA-256 digest with a private key in OpenSSH or PEM format; returns 64 bytes.

    Raises:
        EdgeKitError: the file is not an ed25519 private key, or is protected by a passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    text = _read(key)
    try:
        load = load_ssh_private_key if b"OPENSSH" in text else load_pem_private_key
        private = load(text, password=None)
    except TypeError as error:
        raise EdgeKitError(f"{key} is protected by a passphrase", fix="use a key without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _wrong_key(key, "private") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _wrong_key(key, "private")
    return private.sign(context + digest)


def verify(digest: bytes, signature: bytes, key: Path, context: bytes) -> bool:
    """Whether the owner of a public key, in OpenSSH or PEM format, made this signature of a SHA-256 digest.

    Raises:
        EdgeKitError: the file is not an ed25519 public key.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    text = _read(key)
    try:
        public = load_ssh_public_key(text) if text.startswith(b"ssh-") else load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _wrong_key(key, "public") from error
    if not isinstance(public, Ed25519PublicKey):
        raise _wrong_key(key, "public")
    try:
        public.verify(signature, context + digest)
    except InvalidSignature:
        return False
    return True


def _read(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise EdgeKitError(f"cannot read the key {key}: {error.strerror}", fix="check the path") from error


def _wrong_key(key: Path, kind: str) -> EdgeKitError:
    file = {"private": "key, without .pub", "public": "key.pub"}[kind]
    return EdgeKitError(
        f"{key} is not an ed25519 {kind} key", fix=f"make a pair with ssh-keygen -t ed25519 -f key, and pass {file}"
    )
