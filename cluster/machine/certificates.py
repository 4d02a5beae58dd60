"""Certificates for one start of a server: only who can read its private folder can talk to it.

The authority that signs them exists for the moment of signing; its key is never written, so nobody can sign another.
"""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.machine.private import write_private

VALID = timedelta(days=3650)  # longer than a server runs; a new start makes new ones
SKEW = timedelta(days=1)  # a clock that is set back does not lock anybody out


class Certificates(NamedTuple):
    """Three PEM files, readable by their owner alone; one certificate serves both ends of a connection."""

    authority: Path
    certificate: Path
    key: Path


def write_certificates(folder: Path) -> Certificates:
    """Write an authority's certificate, and a certificate and key for 127.0.0.1 that it has signed."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority, name = _name("orchestrator local authority"), _name("orchestrator local store")
    place = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    root = _unsigned(authority, authority, authority_key.public_key(), is_authority=True)
    leaf = _unsigned(name, authority, key.public_key(), is_authority=False).add_extension(place, critical=False)
    files = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    write_private(files.authority, _pem(root.sign(authority_key, hashes.SHA256())))
    write_private(files.certificate, _pem(leaf.sign(authority_key, hashes.SHA256())))
    write_private(files.key, _key_pem(key))
    return files


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, is_authority: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
