"""The committed stubs are what the compiler makes of the schema."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

PROTO = Path(__file__).parents[2] / "proto"
GENERATED = "pswire/_generated"
FIELD, MESSAGE = descriptor_pb2.DescriptorProto, descriptor_pb2.FileDescriptorProto
WITHOUT_UNIT = {
    descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    descriptor_pb2.FieldDescriptorProto.TYPE_ENUM,
    descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the schema, as whoever changes it does, into a folder of its own."""
    out = tmp_path_factory.mktemp("stubs")
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{GENERATED}=."),
        *(f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")),
        *(f"--descriptor_set_out={out / 'schema'}", "--include_source_info"),
        f"{GENERATED}/parameter_server.proto",
    ]
    subprocess.run(command, cwd=PROTO, check=True, timeout=60)
    return out


def test_the_stubs_are_those_of_the_schema(compiled: Path) -> None:
    """Byte for byte, and no other file lies beside them."""
    made = {path.name: path.read_bytes() for path in (compiled / GENERATED).iterdir()}

    committed = {
        path.name: path.read_bytes()
        for path in (PROTO / GENERATED).glob("*.py*")
        if path.name != "__init__.py"
    }

    assert len(made) == 3
    assert committed.keys() == made.keys()
    for name, text in made.items():
        assert committed[name] == text, f"{name}: compile the schema again"


def test_every_field_with_a_unit_or_an_absence_is_explained(compiled: Path) -> None:
    """Numbers, flags, optional fields: by a comment of their own or the message's."""
    schema = descriptor_pb2.FileDescriptorSet.FromString(
        (compiled / "schema").read_bytes()
    ).file[0]
    explained = {
        tuple(place.path)
        for place in schema.source_code_info.location
        if place.leading_comments or place.trailing_comments
    }

    unexplained = [
        f"{message.name}.{field.name}"
        for m, message in enumerate(schema.message_type)
        for f, field in enumerate(message.field)
        if field.proto3_optional or field.type not in WITHOUT_UNIT
        if not explained
        & {
            (MESSAGE.MESSAGE_TYPE_FIELD_NUMBER, m),
            (MESSAGE.MESSAGE_TYPE_FIELD_NUMBER, m, FIELD.FIELD_FIELD_NUMBER, f),
        }
    ]

    assert len(schema.message_type) > 10
    assert unexplained == []
