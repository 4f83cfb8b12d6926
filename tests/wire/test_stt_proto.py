"""stt.proto against the list of everything its clients may rely on: additions are fine, nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from wire.stt import stt_pb2

GOLDEN = Path(__file__).parents[1] / "golden"
CONTRACT: dict[str, Any] = json.loads((GOLDEN / "stt.proto.json").read_text(encoding="utf-8"))
ERRORS: list[dict[str, Any]] = json.loads((GOLDEN / "grpc.errors.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def file() -> FileDescriptorProto:
    description = FileDescriptorProto()
    stt_pb2.DESCRIPTOR.CopyToProto(description)
    return description


def type_of(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """As it stands in the .proto."""
    if not field.type_name:
        return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = field.type_name.rpartition(".")[2]
    for nested in message.nested_type:
        if nested.name == name and nested.options.map_entry:
            return f"map<{','.join(type_of(part, nested) for part in nested.field)}>"
    return name


def label_of(field: FieldDescriptorProto) -> str:
    if field.proto3_optional:
        return "optional"
    return "repeated" if field.label == FieldDescriptorProto.LABEL_REPEATED else "singular"


def test_package_and_syntax_are_kept(file: FileDescriptorProto) -> None:
    assert (file.package, file.syntax) == (CONTRACT["package"], "proto3")


@pytest.mark.parametrize("name", CONTRACT["messages"])
def test_every_field_is_kept_with_its_number_type_and_label(file: FileDescriptorProto, name: str) -> None:
    [message] = [message for message in file.message_type if message.name == name]
    fields = [
        {"name": field.name, "number": field.number, "type": type_of(field, message), "label": label_of(field)}
        for field in message.field
    ]
    assert [field for field in CONTRACT["messages"][name] if field not in fields] == []


@pytest.mark.parametrize(("name", "numbers"), CONTRACT["unused"].items())
def test_numbers_that_were_given_up_stay_unused_and_are_reserved(
    file: FileDescriptorProto, name: str, numbers: list[int]
) -> None:
    [message] = [message for message in file.message_type if message.name == name]
    assert not {field.number for field in message.field} & set(numbers)
    assert set(numbers) <= {number for span in message.reserved_range for number in range(span.start, span.end)}


@pytest.mark.parametrize(("name", "values"), CONTRACT["enums"].items())
def test_every_enum_value_is_kept(file: FileDescriptorProto, name: str, values: dict[str, int]) -> None:
    [enum] = [enum for enum in file.enum_type if enum.name == name]
    assert values.items() <= {value.name: value.number for value in enum.value}.items()


def test_every_method_is_kept(file: FileDescriptorProto) -> None:
    methods = {
        f"/{file.package}.{service.name}/{method.name}": {
            "request": method.input_type.rpartition(".")[2],
            "response": method.output_type.rpartition(".")[2],
            "client_streams": method.client_streaming,
            "server_streams": method.server_streaming,
        }
        for service in file.service
        for method in service.method
    }
    assert {path: method for path, method in CONTRACT["methods"].items() if methods.get(path) != method} == {}


def test_the_list_of_errors_is_sound() -> None:
    assert len({error["code"] for error in ERRORS}) == len({error["name"] for error in ERRORS}) == len(ERRORS) == 28
    assert {error["status"] for error in ERRORS} <= {status.name for status in grpc.StatusCode}
