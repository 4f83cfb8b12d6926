"""``earmark certificate``: how long a TLS certificate is still valid, with exit codes for a cron job."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

VALID, EXPIRES, UNREADABLE = 0, 1, 2


def certificate(
    file: Annotated[Path, typer.Argument(help="PEM file; of a chain, the certificate that expires first decides.")],
    warn_days: Annotated[int, typer.Option(help="Days before the end from which on to warn.", min=0)] = 14,
) -> int:
    """Check when a certificate expires. Exit codes: 0 valid, 1 expires within --warn-days or is not valid today, 2 unreadable."""
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        print(f"cannot read {file}: {error.strerror}", file=sys.stderr)
        return UNREADABLE
    except ValueError:
        print(f"{file} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", file=sys.stderr)
        return UNREADABLE
    now = datetime.now(UTC)
    first = min(chain, key=lambda one: one.not_valid_after_utc)
    subject = first.subject.rfc4514_string() or "no subject"
    ends = f"{first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    left = first.not_valid_after_utc - now
    begins = max(one.not_valid_before_utc for one in chain)
    if left < timedelta(0):
        print(f"{file}: expired on {ends} ({subject}); renew it now")
        return EXPIRES
    if begins > now:
        print(f"{file}: not valid before {begins:%Y-%m-%d %H:%M} UTC ({subject}); check the clock or the file")
        return EXPIRES
    if left <= timedelta(days=warn_days):
        print(f"{file}: expires on {ends}, in {left.days} days ({subject}); renew it")
        return EXPIRES
    print(f"{file}: valid until {ends}, {left.days} days ({subject})")
    return VALID
