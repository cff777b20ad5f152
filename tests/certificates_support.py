"""A certificate authority for tests, as strict verification (Python 3.13) wants it, and the certificates it issues."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


class Authority:
    """Writes ``ca.pem`` into a folder, and ``NAME.pem`` with ``NAME.key`` for each name that it certifies.

    ``without`` names extensions (by their names in the standard) that it leaves out of its own certificate and of those
    that it issues; ``days`` is how long all of them last from now (negative: they have expired).
    """

    def __init__(self, folder: Path, *, without: tuple[str, ...] = (), days: int = 30) -> None:
        self.folder, self._without = folder, without
        self._ends = datetime.datetime.now(datetime.timezone.utc) + days * DAY
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca = folder / "ca.pem"
        certificate = self._sign("Talus test authority", self._key, "", authority=True)
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, host: str = "127.0.0.1") -> tuple[Path, Path]:
        """Write a certificate with the common name ``name`` for the server ``host``; return its file and its key's."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem, secret = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        pem.write_bytes(self._sign(name, key, host, authority=False).public_bytes(serialization.Encoding.PEM))
        form, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
        secret.chmod(0o600)
        return pem, secret

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, host: str, *, authority: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("Talus test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(datetime.datetime.now(datetime.timezone.utc), self._ends) - DAY)
            .not_valid_after(self._ends)
        )
        extensions: dict[str, tuple[x509.ExtensionType, bool]] = {
            "basicConstraints": (x509.BasicConstraints(ca=authority, path_length=None), True),
            "keyUsage": (_usage(authority=authority), True),
            "subjectKeyIdentifier": (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            "authorityKeyIdentifier": (
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                False,
            ),
        }
        if host:
            numeric = host[0].isdigit()
            general = x509.IPAddress(ipaddress.ip_address(host)) if numeric else x509.DNSName(host)
            extensions["subjectAltName"] = x509.SubjectAlternativeName([general]), False
        for kind, (value, critical) in extensions.items():
            if kind not in self._without:
                builder = builder.add_extension(value, critical=critical)
        return builder.sign(self._key, hashes.SHA256())
