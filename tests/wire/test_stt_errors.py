"""The error table of the gRPC system against the golden list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wire.stt.errors import ERRORS, SttRefusedError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "grpc.errors.json").read_text(encoding="utf-8"))
LATER = {"CREATE_SESSION_UNAUTHENTICATED"}  # of a revision behind the list's


@pytest.mark.spec("grpc-65")
def test_the_table_is_the_golden_list() -> None:
    table = [
        {"code": row.code, "name": row.name, "status": row.status, "http": row.http_status}
        for row in ERRORS.values()
        if row.name not in LATER
    ]
    assert table == GOLDEN


@pytest.mark.spec("grpc-65")
@pytest.mark.parametrize("row", ERRORS.values(), ids=lambda row: row.code)
def test_details_begin_with_the_code(row: object) -> None:
    refusal = SttRefusedError(row, "why")  # type: ignore[arg-type]
    assert str(refusal) == f"{refusal.error.code} why"
    assert refusal.error.body("why") == {"code": refusal.error.code, "message": "why"}
