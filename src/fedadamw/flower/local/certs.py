"""Creates a test bed's certificates and keys: an authority, a server's certificate, and a key for each node.

For a federation over the internet use the certificates of your own authority; nodes' keys can be created like this.
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedadamw.validation import check

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

VALID_DAYS = 365


def write_certificates(folder: Path, hosts: Sequence[str], nodes: int) -> None:
    """Write ca.key, ca.crt, server.pem and server.key for a server at `hosts`, and keys node-<i>, node-<i>.pub.

    Only the owner can read private keys. Raises InputError if the folder is not empty.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    check(not folder.exists() or not any(folder.iterdir()), f"{folder}: not empty; choose a new folder")
    check(len(hosts) > 0, "give the server's host names or addresses")
    for host in hosts:
        check(_is_host(host), f"{host!r}: a server's name looks like fl.example.org, or is an IP address; no port")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca = (
        _certificate_builder("fedadamw test bed", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority, hashes.SHA384())
    )
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    of_server = (
        _certificate_builder("fedadamw SuperLink", server)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    _write_private(folder / "ca.key", authority.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    _write_private(folder / "server.key", server.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "server.pem").write_bytes(of_server.public_bytes(pem))
    for number in range(nodes):
        _write_node_key(folder / f"node-{number}")


def _certificate_builder(subject: str, key: "ec.EllipticCurvePrivateKey") -> "x509.CertificateBuilder":
    """Return a builder for a certificate of `key`, issued by the test bed's authority, without extensions."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    owner, issuer = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, "fedadamw test bed")
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(owner)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _write_node_key(path: Path) -> None:
    """Write a node's private key to `path` and its public key next to it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem, openssh = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(path, key.private_bytes(pem, openssh, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")


def _general_name(host: str) -> "x509.GeneralName":
    """Convert a host name or IP address to the form used in a certificate."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _is_host(host: str) -> bool:
    """Return whether `host` is a host name or an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return (
            re.fullmatch(r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9-]{1,63}", host) is not None
        )
    return True


def _usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can ever read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
