"""A bundle's tokenizer that multiplies text, runs a pattern or panics is refused by name, before it is used."""

import json
import shutil
import time

import pytest
from flamest.base.errors import DataError
from flamest.base.files import sha256_bytes
from flamest.runtime.bundle.tokenizer_check import MAX_ADDED, MAX_TOKEN, open_tokenizer
from flamest.runtime.extractor import open_extractor

WORDS = {"[UNK]": 0, "a": 1, "b": 2}


def tokenizer(**parts):
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": WORDS}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "model": model} | parts


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def added(content, **fields):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": 3, "content": content, "special": True, **flags, **fields}


DOUBLED = {"type": "Sequence", "decoders": [replace({"String": "a"}, "aa")] * 20}
HOSTILE = {
    "captions of a million letters": tokenizer(decoder=DOUBLED),
    "one replacement": tokenizer(decoder=replace({"String": "a"}, "a" * 1_000_000)),
    "a pattern in the decoder": tokenizer(decoder=replace({"Regex": "(a|a)*$c"}, "x")),
    "a pattern before words": tokenizer(normalizer=replace({"Regex": "(a|a)*$c"}, "x")),
    "a pattern between words": tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    ),
    "a normalizer that panics": tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "text in front": tokenizer(normalizer={"type": "Prepend", "prepend": "a" * 1_000_000}),
    "another model": tokenizer(model={"type": "Unigram", "unk_id": 10**9, "vocab": [["a", 0.0]]}),
    "a model without a type": tokenizer(model={"vocab": WORDS}),
    "no model": tokenizer(model=None),
    "a long word": tokenizer(model=tokenizer()["model"] | {"vocab": {**WORDS, "c" * (MAX_TOKEN + 1): 3}}),
    "a vocabulary in a list": tokenizer(model=tokenizer()["model"] | {"vocab": [["a", 1]]}),
    "a negative number": tokenizer(model=tokenizer()["model"] | {"vocab": {"a": -1}}),
    "a huge number": tokenizer(model=tokenizer()["model"] | {"vocab": {"a": 1 << 64}}),
    "a long added word": tokenizer(added_tokens=[added("c" * 1000)]),
    "too many added words": tokenizer(added_tokens=[added("c", id=number) for number in range(MAX_ADDED + 1)]),
    "added words that are none": tokenizer(added_tokens=[1]),
    "half a character": tokenizer(model=tokenizer()["model"] | {"vocab": {"\ud800": 1}}),
    "a list": [],
    "a number": 1,
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_tokenizer_is_refused(how):
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        open_tokenizer(json.dumps(HOSTILE[how]).encode(), "tokenizer.json")
    assert caught.value.code == "bad_tokenizer"
    assert len(caught.value.message) < 600
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{", b'{"decoder":' + b'{"type":"Sequence","decoders":[' * 100_000, b"[" * 1_000_000]
)
def test_bytes_that_are_no_tokenizer_are_refused(data):
    with pytest.raises(DataError) as caught:
        open_tokenizer(data, "tokenizer.json")
    assert caught.value.code == "bad_tokenizer"


def test_of_a_part_given_twice_the_checked_one_is_used():
    text = json.dumps(tokenizer())[:-1]
    for first, second in ((DOUBLED, None), (None, DOUBLED)):
        twice = f'{text}, "decoder": {json.dumps(first)}, "decoder": {json.dumps(second)}}}'
        try:
            opened = open_tokenizer(twice.encode(), "tokenizer.json")
        except DataError:
            continue
        assert opened.decode([1] * 20) == " ".join("a" * 20)


def test_a_bundle_with_a_hostile_tokenizer_is_not_opened(toy_bundle, tmp_path):
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    data = json.dumps(tokenizer(decoder=DOUBLED)).encode()
    (bundle / "tokenizer.json").write_bytes(data)
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    manifest["files"]["tokenizer.json"] = {"sha256": sha256_bytes(data), "bytes": len(data)}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError) as caught:
        open_extractor(bundle, threads=1)
    assert caught.value.code == "bad_tokenizer"


def test_the_tokenizers_of_exports_are_opened():
    tokenizers = pytest.importorskip("flamest.export.weights.tokenizer")
    for data in (tokenizers.synthetic_tokenizer(), tokenizers.small_tokenizer()):
        assert open_tokenizer(data, "tokenizer.json").decode([200, 210])
