"""Segments have the embeddings of files that hold the same frames; bench/segments.py has it at full size."""

import pytest
from flamest.bench import segments


@pytest.mark.parametrize("kind", segments.KINDS)
def test_segments_equal_files_cut_by_stream_copy_and_encoded_without_loss(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(segments, "HEIGHT", 96)
    monkeypatch.setattr(segments, "WIDTH", 128)
    row = segments.measure_kind(tmp_path, kind, minutes=0.5, count=4)
    at_keys, elsewhere = row["at_key_frames"], row["segments"] - row["at_key_frames"]
    assert row["bit_equal_to_stream_copy"] == f"{at_keys} of {at_keys}"
    assert row["bit_equal_to_lossless_encoding"] == f"{elsewhere} of {elsewhere}"
    assert row["within_own_plus_one_group"] == row["segments"]
    assert row["container_opens"] == 2  # for the index and for the frames
