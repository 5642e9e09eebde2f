"""Readers go on with the file that they have open."""

import itertools
import threading
from contextlib import closing
from pathlib import Path

from flamest.runtime.clip_records import Clip, Segment
from flamest.runtime.video.read_ahead import ReadAhead


class NotingReader:
    """Notes the files that it reads, once ``begin`` is set."""

    def __init__(self, begin):
        self.begin, self.files = begin, []
        self.video = self

    def read(self, clip):
        self.begin.wait(20)
        self.files.append(clip.path.name)
        return clip

    def interrupt(self):
        self.begin.set()

    def close(self):
        pass


def segments(name, count):
    return [Clip(Path(name), f"{number:064}", segment=Segment(number, number + 1)) for number in range(count)]


def read(clips, readers):
    begin = threading.Event()
    readers = [NotingReader(begin) for _ in range(readers)]
    with closing(ReadAhead(readers)) as ahead:
        for clip in clips:
            ahead.submit(clip, clip)
        begin.set()
        keys = {ahead.take(20).key for _ in clips}
    assert len(keys) == len(clips)
    return [reader.files for reader in readers]


def changes(files):
    return sum(one != other for one, other in itertools.pairwise(files))


def test_a_reader_goes_on_with_the_file_that_it_has_open():
    mixed = [clip for pair in zip(segments("a", 20), segments("b", 20), strict=True) for clip in pair]
    assert sum(map(changes, read(mixed, 2))) <= 2  # the one that ends first helps the other
    (one,) = read(mixed, 1)
    assert one == ["a"] * 20 + ["b"] * 20


def test_readers_share_the_segments_of_a_lone_file():
    found = read(segments("a", 50), 2)
    assert sum(map(len, found)) == 50


def test_whole_files_are_read_in_the_order_in_which_they_came():
    clips = [Clip(Path(f"{number}"), f"{number:064}") for number in range(9)]
    assert read(clips, 1) == [[f"{number}" for number in range(9)]]
