"""The signing credentials of this installation: an ES256 key, its certificate, the root above it.

Made on the first start and kept in a single file. Imports ``cryptography`` and :mod:`.kept`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .kept import kept

#: Long enough that nobody meets the end of a demonstration chain.
LIFETIME = timedelta(days=3650)

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----\n", re.DOTALL)
_KEY_USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
    "key_cert_sign crl_sign encipher_only decipher_only"
).split()


@dataclass(frozen=True, slots=True)
class Credentials:
    """A signing key, the certificate for it and the root that vouches for both, as PEM."""

    key: str = field(repr=False)
    certificate: str
    root: str

    @property
    def chain(self) -> str:
        """Certificate and root, the signer's first."""
        return self.certificate + self.root


def load_or_create(path: Path) -> Credentials:
    """Read the credentials in *path*; make them first if there is no such file.

    :raises ValueError: the file is not what this function wrote; it is left as it is.
    """
    blocks = [match[0] for match in _PEM_BLOCK.finditer(kept(path, _pem))]
    if len(blocks) != 3:
        raise ValueError(f"{path} is damaged: remove it and start again for a new signing chain")
    return Credentials(*blocks)


def _pem() -> str:
    made = _make()
    return made.key + made.chain


def _make() -> Credentials:
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    certificate = _certificate("Example Signer", key, root_key, {"digital_signature"})
    root = _certificate("Example Root", root_key, root_key, {"key_cert_sign", "crl_sign"})
    return Credentials(key_pem, certificate, root)


def _certificate(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    usages: set[str],
) -> str:
    """A certificate for *key* with what the C2PA certificate profile asks of it, as PEM."""
    is_root = key is issuer_key
    public_key = key.public_key()
    # A clock a little behind ours must not find the certificate not yet valid.
    start = datetime.now(UTC) - timedelta(minutes=5)
    usage = x509.KeyUsage(**{name: name in usages for name in _KEY_USAGES})
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder(_name("Example Root"), _name(common_name), public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + LIFETIME)
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(issuer_id, critical=False)
    )
    if not is_root:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _name(common_name: str) -> x509.Name:
    # The organisation is what C2PA readers show as the issuer; without it they refuse.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Concierge"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
