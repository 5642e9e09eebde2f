from flamest.fedproto.generate import FOLDER, generated_code


def test_the_committed_code_is_generated_from_the_proto():
    for name, content in generated_code().items():
        assert (FOLDER / name).read_bytes() == content, f"{name} is stale: run make protos"


def test_another_proto_gives_other_code(tmp_path):
    proto = tmp_path / "flamest_v1.proto"
    proto.write_text((FOLDER / "flamest_v1.proto").read_text().replace("uint64 examples = 5", "uint64 samples = 5"))
    assert generated_code(proto)["flamest_v1_pb2.py"] != (FOLDER / "flamest_v1_pb2.py").read_bytes()
