"""The committed protobuf code: what the .proto gives, and what it asks of the packages that run it."""

from __future__ import annotations

import re

import pytest
from flamest.fedproto.generate import COMPILER, FOLDER, OUTPUTS, generated_code

compiled = pytest.mark.skipif(not COMPILER.exists(), reason="no compiler in build/protoc: make protoc")


@compiled
def test_the_committed_code_is_generated_from_the_proto():
    for name, content in generated_code().items():
        assert (FOLDER / name).read_bytes() == content, f"{name} is stale: run make protos"


@compiled
def test_another_proto_gives_other_code(tmp_path):
    proto = tmp_path / "flamest_v1.proto"
    proto.write_text((FOLDER / "flamest_v1.proto").read_text().replace("uint64 examples = 5", "uint64 samples = 5"))
    assert generated_code(proto)["flamest_v1_pb2.py"] != (FOLDER / "flamest_v1_pb2.py").read_bytes()


def test_the_committed_code_asks_for_no_version_of_protobuf_or_grpcio():
    code = "\n".join((FOLDER / name).read_text() for name in OUTPUTS)
    assert not re.search(r"ValidateProtobufRuntimeVersion|GRPC_GENERATED_VERSION|_registered_method", code)
