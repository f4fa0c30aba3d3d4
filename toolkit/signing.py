"""Ed25519 signatures (RFC 8032) by the cryptography package."""

import hashlib
from pathlib import Path

from ..deploy.bundle import Bundle
from ..deploy.errors import BundleError, EdgeKitError
from ..deploy.files import write_file
from ..deploy.manifest import MANIFEST, SIGNATURE

_SIGNATURE_BYTES = 64

# So that a signature made for one kind of thing is never one of another.
PACKED_MODEL, _BUNDLE = b"edgekit packed model 1\0", b"edgekit bundle 1\0"


def check_key(key: Path) -> None:
    """See that a private key can sign, before the work whose result it is to sign.

    Raises:
        EdgeKitError: see `sign`.
    """
    sign(bytes(32), key, b"edgekit tries a key 1\0")


def sign_bundle(path: Path, key: Path) -> None:
    """Sign a bundle: its manifest, which holds the hash of every file, beside which the signature is put.

    Raises:
        EdgeKitError: see `sign`.
    """
    digest = hashlib.sha256((path / MANIFEST).read_bytes()).digest()
    write_file(path / SIGNATURE, sign(digest, key, _BUNDLE))


def verify_bundle(bundle: Bundle, key: Path) -> None:
    """Refuse a bundle that the owner of a public key did not sign.

    Raises:
        BundleError: it has no signature, or another's.
        EdgeKitError: see `verify`.
    """
    path = bundle.path / SIGNATURE
    try:
        if path.is_symlink() or not path.is_file():  # a fifo would be waited for
            raise FileNotFoundError(path)
        with path.open("rb") as stream:
            signature = stream.read(_SIGNATURE_BYTES + 1)
    except OSError:
        raise BundleError(
            f"{bundle.path} is not signed", fix="edgekit build --sign key, or leave out --verify"
        ) from None
    digest = hashlib.sha256((bundle.path / MANIFEST).read_bytes()).digest()
    if not verify(digest, signature, key, _BUNDLE):
        raise BundleError(f"{bundle.path} is not signed by the owner of {key}", fix="do not use it; ask its maker")


def sign(digest: bytes, key: Path, context: bytes) -> bytes:
    """64 bytes: the signature of a SHA-256 digest by a private key, in OpenSSH's form or PEM.

    Raises:
        EdgeKitError: the file is not an ed25519 private key, or a passphrase protects it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    text = _read(key)
    try:
        load = load_ssh_private_key if b"OPENSSH" in text else load_pem_private_key
        private = load(text, password=None)
    except TypeError as error:
        raise EdgeKitError(f"{key} is protected by a passphrase", fix="sign with a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(key, "private") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _no_key(key, "private")
    return private.sign(context + digest)


def verify(digest: bytes, signature: bytes, key: Path, context: bytes) -> bool:
    """Whether a signature is that of a SHA-256 digest, by the owner of a public key, in OpenSSH's form or PEM.

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
        raise _no_key(key, "public") from error
    if not isinstance(public, Ed25519PublicKey):
        raise _no_key(key, "public")
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


def _no_key(key: Path, kind: str) -> EdgeKitError:
    hint = {"private": "the one without .pub signs", "public": "the one with .pub verifies"}[kind]
    return EdgeKitError(f"{key} is not an ed25519 {kind} key", fix=f"ssh-keygen -t ed25519 -f key; {hint}")
