"""``earmark certificate`` on real certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.harness.lives import earmark


def pem(days: float, *, begins_days: float = -1.0, name: str = "stt.example") -> bytes:
    """A self-signed leaf that ends so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=min(begins_days, days - 1)))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("days", "options", "status", "said"),
    [
        (90, [], 0, "valid until"),
        (14.5, [], 0, "valid until"),
        (13.5, [], 1, "expires on"),
        (90, ["--warn-days", "91"], 1, "in 89 days"),
        (0.5, ["--warn-days", "0"], 0, "valid until"),
        (-1, ["--warn-days", "0"], 1, "expired on"),
    ],
)
def test_how_long_it_is_valid_decides(tmp_path: Path, days: float, options: list[str], status: int, said: str) -> None:
    file = tmp_path / "server.pem"
    file.write_bytes(pem(days))
    checked = earmark("certificate", str(file), *options)
    assert (checked.returncode, said in checked.stdout, "CN=stt.example" in checked.stdout) == (status, True, True)


def test_of_a_chain_the_first_to_expire_decides(tmp_path: Path) -> None:
    file = tmp_path / "chain.pem"
    file.write_bytes(pem(90) + pem(3, name="intermediate") + pem(400))
    checked = earmark("certificate", str(file))
    assert checked.returncode == 1
    assert "CN=intermediate" in checked.stdout


def test_one_that_is_not_valid_yet_is_told(tmp_path: Path) -> None:
    file = tmp_path / "early.pem"
    file.write_bytes(pem(90, begins_days=2))
    checked = earmark("certificate", str(file))
    assert checked.returncode == 1
    assert "not valid before" in checked.stdout


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None],
    ids=["empty", "text", "broken", "missing"],
)
def test_what_cannot_be_read_is_2(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "server.pem"
    if content is not None:
        file.write_bytes(content)
    checked = earmark("certificate", str(file))
    assert checked.returncode == 2
    assert str(file) in checked.stderr
    assert "Traceback" not in checked.stderr
