"""TLS as a client: the context of a connection, and what is wrong with a certificate that is refused.

Python 3.13 and later verify strictly (``ssl.VERIFY_X509_STRICT``): an authority must say what its key is for, and each
certificate must name its issuer's key. Private authorities often lack both.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

NEW_AUTHORITY = (
    "make the authority anew: openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650"
    ' -subj "/CN=Talus authority" -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.pem,'
    " then the certificates that it issued (talus docs mqtt, Certificates)"
)
NEW_CERTIFICATE = (
    "issue the certificate anew: openssl req -x509 -CA ca.pem -CAkey ca.key ..., as in talus docs mqtt (Certificates)"
)

_NOT_YET_VALID, _EXPIRED, _INVALID_CA = 9, 10, 79
_OTHER_NAME = (62, 64)
_NO_ISSUER_KEY = 85
_STRICT = range(80, 95)
"""OpenSSL's codes (X509_V_ERR_...) for a certificate that lacks an extension or has one that it must not have."""
_MISSING = {85: "authorityKeyIdentifier", 86: "subjectKeyIdentifier", 89: "critical basicConstraints", 92: "keyUsage"}


_SOON = datetime.timedelta(days=14)
"""A certificate that ends within this is told of."""


def client_context(
    ca: str | Path | None = None, cert: str | Path | None = None, key: str | Path | None = None
) -> ssl.SSLContext:
    """Return a context that verifies servers by the authorities in ``ca`` (PEM; the system's if None) and shows them
    the certificate ``cert`` with its ``key``.

    Raises:
        OSError, ValueError: a file cannot be read or is not PEM.
    """
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


def refusal(server: str, error: ssl.SSLCertVerificationError, trust: str) -> tuple[str, str]:
    """Return what is wrong with the certificate of ``server``, and what to do; ``trust`` says where an authority that
    is to be trusted is named."""
    said, code = error.verify_message, error.verify_code
    if code in _STRICT or code == _INVALID_CA:
        who = f"the certificate of {server}" if code == _NO_ISSUER_KEY else f"the authority behind {server}"
        lack = f"has no {_MISSING[code]}" if code in _MISSING else "is not made as an authority must be"
        text = f"{who} {lack}, which strict verification (Python 3.13 and later) requires: {said}"
        return text, NEW_CERTIFICATE if code == _NO_ISSUER_KEY else NEW_AUTHORITY
    if code in _OTHER_NAME:
        hint = "this is another host, or its certificate was issued for another name: set host to that name"
        return f"the certificate of {server} was issued for another name: {said}", hint
    if code in (_NOT_YET_VALID, _EXPIRED):
        hint = "renew the server's certificate, and check this machine's clock"
        return f"the certificate of {server} is not valid now: {said}", hint
    hint = f"name the file of the authority that issued it ({trust})"
    return f"the certificate of {server} is not trusted: {said}", hint


def expiry(path: Path, now: datetime.datetime) -> str | None:
    """Say when the certificates in the PEM file ``path`` end, if they have, or will within two weeks; else None.

    Raises:
        OSError, ValueError: the file cannot be read, or holds no certificate.
    """
    from cryptography import x509

    return _expiry(x509.load_pem_x509_certificates(path.read_bytes()), now)


def flaws(path: Path, now: datetime.datetime) -> list[str]:
    """Return why handshakes fail, or soon will, with the certificates in the PEM file ``path``: there are none, all
    have expired or do so in two weeks, or each is an authority that strict verification refuses.

    Raises:
        OSError: the file cannot be read.
    """
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        return ["holds no certificate in PEM"]
    told = [] if (said := _expiry(found, now)) is None else [said]
    lacks = [_lacks(certificate) for certificate in found]
    if all(lacks):
        told.append(f"has no {' and no '.join(lacks[0])}, which Python 3.13 and later require; {NEW_AUTHORITY}")
    return told


def _expiry(found: Sequence[Certificate], now: datetime.datetime) -> str | None:
    """Of authorities the last counts, of a server or client its own, which comes before those that issued it."""
    own = found if _is_authority(found[0]) else found[:1]
    end = max(certificate.not_valid_after_utc for certificate in own)
    if end - now >= _SOON:
        return None
    return f"has expired on {end:%Y-%m-%d}" if end <= now else f"expires on {end:%Y-%m-%d}"


def _is_authority(certificate: Certificate) -> bool:
    from cryptography import x509

    constraints = [one for one in certificate.extensions if one.oid == x509.BasicConstraints.oid]
    return bool(constraints) and bool(constraints[0].value.ca)


def _lacks(certificate: Certificate) -> list[str]:
    """Return the extensions that strict verification misses in an authority's certificate; none for any other."""
    from cryptography import x509

    if not _is_authority(certificate):
        return []
    present = {extension.oid: extension for extension in certificate.extensions}
    constraints = present[x509.BasicConstraints.oid]
    needed = {"keyUsage": x509.KeyUsage.oid, "subjectKeyIdentifier": x509.SubjectKeyIdentifier.oid}
    critical = [] if constraints.critical else ["critical basicConstraints"]
    return critical + [name for name, oid in needed.items() if oid not in present]
