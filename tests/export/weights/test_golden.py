"""verify-weights --caption: the caption of transformers' test picture, by the network and by a bundle's graphs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.export.cli.main import app
from flamest.export.weights import golden
from flamest.runtime.bundle.packaged import resolve_bundle
from flamest_tests_published_blip import small_files
from flamest_tests_web_server import LOGIN_PAGE, serving, status
from PIL import Image
from typer.testing import CliRunner


def jpeg(seed: int = 0, size: tuple[int, int] = (300, 200)) -> bytes:
    """A picture that is not square, as the published one."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def folder(tiny_blip, tmp_path_factory):
    """The published layout with random weights."""
    folder = tmp_path_factory.mktemp("hub") / "blip"
    folder.mkdir()
    for name, content in small_files(tiny_blip.model).items():
        if name != "tf_model.h5":
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def small_weights_are_no_release(monkeypatch):
    """The file is called as the published one is, and its hash is another."""
    monkeypatch.setattr("flamest.export.weights.verification.RELEASES", ())


def run(*words, tmp_path) -> tuple[int, dict]:
    place = ["verify-weights", *map(str, words), "--record", str(tmp_path / "record.json"), "--json"]
    done = CliRunner().invoke(app, place)
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def test_the_expected_caption_is_the_one_of_transformers_test():
    assert golden.EXPECTED == (30522, 1037, 2450, 3564, 2006, 1996, 3509, 2007, 2014, 3899, 102)
    assert golden.PICTURE_URL == "https://huggingface.co/hf-internal-testing/blip-test-image/resolve/main/demo.jpg"


@pytest.fixture(scope="module")
def compared(folder, tiny_bundle, tmp_path_factory):
    """Options, exit code and answer of a comparison by network and bundle; the weights are random."""
    place = tmp_path_factory.mktemp("compared")
    words = (folder, "--image", write(place / "demo.jpg", jpeg()), "--bundle", tiny_bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flamest.export.weights.verification.RELEASES", ())
        return words, *run(*words, tmp_path=place)


def test_random_weights_differ_and_both_captions_are_in_the_answer(compared):
    _, code, said = compared
    assert (code, said["error"]["code"], said["golden"]["verdict"]) == (65, "other_caption", "differs")
    network, bundle = said["golden"]["captions"]
    assert network["token_ids"] == bundle["token_ids"], "our graphs say what the reference network says"
    assert network["text"] == bundle["text"]
    assert (network["by"], network["token_ids"][0]) == ("the reference network (PyTorch)", 30522)
    assert "vision on " in bundle["by"]
    assert said["caption"]["verdict"] == "recorded now", "the seeded picture too"
    for text in (network["text"], "a woman sitting on the beach with her dog"):
        assert f"'{text}'" in said["error"]["message"]
    assert said["error"]["fix"].startswith("these are other weights, or another picture")


def test_the_planted_caption_is_equal(compared, monkeypatch, tmp_path, capsys):
    words, _, before = compared
    ids = tuple(before["golden"]["captions"][0]["token_ids"])
    monkeypatch.setattr(golden, "EXPECTED", ids)
    code, said = run(*words, tmp_path=tmp_path)
    assert (code, said["golden"]["verdict"]) == (0, "equal")
    assert [row["equal"] for row in said["golden"]["captions"]] == [True, True]


def test_a_person_sees_both_captions(monkeypatch, capsys):
    from flamest.export.cli import verify_weights

    right = golden.GoldenCaption("the network", golden.EXPECTED, golden.EXPECTED_TEXT)
    wrong = golden.GoldenCaption("the bundle", (30522, 1037, 3899, 102), "a dog")
    verify_weights._show_golden([right, wrong])
    assert capsys.readouterr().out.splitlines() == [
        "caption of transformers' test picture, expected: 'a woman sitting on the beach with her dog'",
        "  30522 1037 2450 3564 2006 1996 3509 2007 2014 3899 102",
        "EQUAL: the network: 'a woman sitting on the beach with her dog'",
        "DIFFERS from token 2 on: the bundle: 'a dog'",
        "  30522 1037 3899 102",
    ]


@pytest.mark.parametrize(
    ("ids", "first"),
    [
        (golden.EXPECTED, None),
        (golden.EXPECTED[:-1], 10),
        ((*golden.EXPECTED, 5), 11),
        ((*golden.EXPECTED[:-2], 7, 102), 9),
        ((30523, *golden.EXPECTED[1:]), 0),
    ],
)
def test_captions_are_compared_token_by_token(ids, first):
    caption = golden.GoldenCaption("x", ids, "")
    assert (caption.equal, caption.first_difference) == (first is None, first)


def test_no_option_asks_for_no_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "fetch_file", lambda *_, **__: pytest.fail("fetched"))
    code, said = run(folder, tmp_path=tmp_path)
    assert (code, said["golden"], said["caption"]["verdict"]) == (0, None, "recorded now")


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (["--no-caption", "--image", "demo.jpg"], 2, "usage"),
        (["--image", "missing.jpg"], 74, "storage"),
        (["--image", "page.jpg"], 65, "bad_picture"),
        (["--image", "demo.jpg", "--bundle", "missing"], 65, "bad_data"),
    ],
)
def test_a_wrong_request_ends_with_its_code(folder, tmp_path, monkeypatch, words, exit_code, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.jpg").write_bytes(jpeg())
    (tmp_path / "page.jpg").write_bytes(LOGIN_PAGE)
    found, said = run(folder, *words, tmp_path=tmp_path)
    assert (found, said["error"]["code"]) == (exit_code, code), said
    assert said["error"]["fix"]


def test_a_weights_file_of_another_network_has_no_caption(tmp_path):
    (tmp_path / "SLOW_8x8_R50.pyth").write_bytes(b"slow" * 10)
    code, said = run(tmp_path / "SLOW_8x8_R50.pyth", "--caption", tmp_path=tmp_path)
    assert (code, "no BLIP folder" in said["error"]["message"]) == (2, True)


def test_a_bundle_of_other_weights_is_refused(tiny_blip, tmp_path):
    picture = golden.read_picture(write(tmp_path / "demo.jpg", jpeg()))
    with pytest.raises(DataError, match=r"holds the captioner .*, of other weights than these"):
        golden._by_bundle(resolve_bundle(Path("miniworld")), picture, tiny_blip.source.weights_sha256)


def test_the_picture_is_fetched_once_and_its_absence_names_the_option(folder, tmp_path):
    """The command in a process of its own, with a hub on loopback that has the picture, or has not."""
    with serving() as web:
        web.hub = {golden.PICTURE_REPOSITORY: {golden.PICTURE: jpeg()}}
        variables = {"HF_ENDPOINT": web.address, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "*"}
        words = [sys.executable, "-m", "flamest.export", "verify-weights", str(folder), "--caption", "--json"]
        words += ["--record", str(tmp_path / "record.json")]
        answers = []
        for fault in (status(403), None):
            web.faults = {} if fault is None else {golden.PICTURE_REPOSITORY: fault}
            done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **variables})
            answers.append((done.returncode, json.loads(done.stdout.splitlines()[-1])))
    (code, refused), (found, said) = answers
    assert (code, refused["error"]["code"]) == (69, "unreachable")
    assert "it is refused (HTTP status 403)" in refused["error"]["message"]
    assert (
        f"fetch {golden.PICTURE_URL} where there is network, and give it with --image demo.jpg"
        in refused["error"]["fix"]
    )
    # The folder's pytorch_model.bin is not the published one, which is said before its caption is.
    assert (found, said["error"]["code"]) == (65, "other_weights")
    assert f"GET /{golden.PICTURE_REPOSITORY}/resolve/" in " ".join(web.asked)
