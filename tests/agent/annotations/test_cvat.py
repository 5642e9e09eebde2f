"""CVAT's XML 1.1: tracks, tags, projects, the exported .zip; and every damage named."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import pytest
from flamest.agent.annotations import xml_events, zip_member
from flamest.agent.annotations.annotation import FrameRange
from flamest.agent.annotations.reading import ReadingOptions, read_annotations
from flamest.base.errors import DataError

META = (
    "<meta><task><id>5</id><name>ward</name><size>100</size><mode>interpolation</mode><overlap>5</overlap>"
    "<bugtracker></bugtracker><start_frame>0</start_frame><stop_frame>99</stop_frame>"
    "<frame_filter>{filter}</frame_filter>"
    "<labels><label><name>walk</name><attributes><attribute><name>source</name></attribute></attributes></label></labels>"
    "<segments><segment><id>9</id><start>0</start><stop>99</stop></segment></segments>"
    "<original_size><width>64</width><height>48</height></original_size></task>"
    "<dumped>2024-01-01</dumped><source>{source}</source></meta>"
)
GOOD = '<track id="7" label="walk"><box frame="90" outside="0"/><box frame="95" outside="1"/></track>'


def document(*content, source="good.mp4", step="", meta=None):
    head = META.format(filter=step, source=source) if meta is None else meta
    inner = f"<version>1.1</version>{head}{''.join(content)}"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{inner}</annotations>'


def track(*shapes, label="fall", number=0, more=""):
    """A track of (frame, outside) pairs."""
    boxes = "".join(
        f'<box frame="{frame}" xtl="1.00" ytl="2.00" xbr="3.00" ybr="4.00" outside="{outside}" keyframe="1">'
        f"{more}</box>"
        for frame, outside in shapes
    )
    return f'<track id="{number}" label="{label}" source="manual">{boxes}</track>'


def image(frame, *tags, name=None, more=""):
    inner = "".join(f'<tag label="{tag}" source="manual">{more}</tag>' for tag in tags)
    return f'<image id="{frame}" name="{name or f"frame_{frame:06}"}" width="64" height="48">{inner}</image>'


def attribute(name, value):
    return f'<attribute name="{name}">{value}</attribute>'


def read(tmp_path, content, **options):
    path = tmp_path / "annotations.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_annotations(path, ReadingOptions(**options))


def spans(found):
    return [(each.label, each.span, each.person) for each in found.annotations]


def test_a_track_is_a_segment_for_each_stretch_that_is_not_outside(tmp_path):
    found = read(tmp_path, document(track((0, 0), (1, 0), (10, 1), (20, 0), (21, 0), (30, 1))))
    assert spans(found) == [("fall", FrameRange(0, 10), ""), ("fall", FrameRange(20, 30), "")]
    assert found.annotations[0].video == "good.mp4"
    assert not found.problems


def test_a_track_that_never_ends_has_its_last_listed_frame(tmp_path):
    assert spans(read(tmp_path, document(track((5, 0), (6, 0), (7, 0))))) == [("fall", FrameRange(5, 8), "")]


def test_frames_of_a_task_with_a_step_are_the_videos_own(tmp_path):
    content = document(track((0, 0), (5, 0), (10, 1)), track((50, 0), number=1), step="step=5")
    assert spans(read(tmp_path, content)) == [("fall", FrameRange(0, 10), ""), ("fall", FrameRange(50, 55), "")]


def test_other_encodings_that_xml_states_are_read(tmp_path):
    text = document(GOOD).replace("walk", "läuft")
    for encoding in ("utf-8-sig", "utf-16", "iso-8859-1"):
        content = text.replace("utf-8", encoding.removesuffix("-sig")).encode(encoding)
        assert [label for label, _, _ in spans(read(tmp_path, content))] == ["läuft"]


def test_tracks_at_the_same_time_are_persons(tmp_path):
    content = document(track((0, 0), (10, 1)), track((5, 0), (20, 1), number=1, label="walk"))
    found = read(tmp_path, content)
    assert spans(found) == [("fall", FrameRange(0, 10), "track 0"), ("walk", FrameRange(5, 20), "track 1")]
    assert all(each.together for each in found.annotations)


def test_an_attribute_names_the_person(tmp_path):
    content = document(track((0, 0), (10, 1), more=attribute("Patient", "p17")))
    found = read(tmp_path, content)
    assert spans(found) == [("fall", FrameRange(0, 10), "p17")]
    assert not found.annotations[0].together


def test_an_attribute_is_the_label_where_it_is_asked_for(tmp_path):
    boxes = "".join(
        f'<box frame="{frame}" outside="{outside}">{attribute("action", action)}</box>'
        for frame, outside, action in ((0, 0, "walk"), (10, 0, "fall"), (15, 0, "fall"), (20, 1, "fall"))
    )
    content = document(f'<track id="0" label="person">{boxes}</track>')
    assert [label for label, _, _ in spans(read(tmp_path, content))] == ["person"]
    assert spans(read(tmp_path, content, label_attribute="action")) == [
        ("walk", FrameRange(0, 10), ""),
        ("fall", FrameRange(10, 20), ""),
    ]


@pytest.mark.parametrize("unset", ["", "__undefined__"])
def test_frames_without_a_value_are_left_out_alone(tmp_path, unset):
    boxes = "".join(
        f'<box frame="{frame}" outside="{outside}">{attribute("action", action)}</box>'
        for frame, outside, action in ((0, 0, "walk"), (10, 0, unset), (20, 0, "fall"), (30, 1, unset))
    )
    content = document(f'<track id="0" label="person">{boxes}</track>')
    found = read(tmp_path, content, label_attribute="action")
    assert spans(found) == [("walk", FrameRange(0, 10), ""), ("fall", FrameRange(20, 30), "")]
    assert found.notes["frames without a value of 'action' are left out"] == 1


@pytest.mark.parametrize("second", [(5, 0), (50, 0)])
def test_a_named_person_and_another_track_are_held_out_together(tmp_path, second):
    named = track((0, 0), (10, 1), more=attribute("person", "anna"))
    found = read(tmp_path, document(named, track(second, (60, 1), number=1, label="walk")))
    assert [(each.person, each.together) for each in found.annotations] == [("anna", True), ("track 1", True)]


def test_two_named_persons_at_once_are_held_out_together(tmp_path):
    content = document(
        track((0, 0), (10, 1), more=attribute("person", "anna")),
        track((5, 0), (20, 1), number=1, more=attribute("person", "ben")),
    )
    assert [(each.person, each.together) for each in read(tmp_path, content).annotations] == [
        ("anna", True),
        ("ben", True),
    ]


def test_other_shapes_and_skeletons_are_tracks_too(tmp_path):
    skeleton = (
        '<track id="1" label="sit"><skeleton frame="3"><points label="1" outside="0" points="1,2"/></skeleton>'
        '<skeleton frame="4" outside="1"/></track>'
    )
    polygon = '<track id="0" label="fall"><polygon frame="1" outside="0" points="1,2;3,4"/></track>'
    found = read(tmp_path, document(polygon, skeleton))
    assert spans(found) == [("fall", FrameRange(1, 2), ""), ("sit", FrameRange(3, 4), "")]


def test_a_skeleton_is_outside_where_all_its_points_are(tmp_path):
    def skeleton(frame, *outsides):
        points = "".join(f'<points label="{n}" outside="{each}" points="1,2"/>' for n, each in enumerate(outsides))
        return f'<skeleton frame="{frame}" keyframe="1">{points}</skeleton>'

    shapes = skeleton(3, 0, 0) + skeleton(4, 0, 1) + skeleton(8, 1, 1)
    found = read(tmp_path, document(f'<track id="0" label="sit">{shapes}</track>'))
    assert spans(found) == [("sit", FrameRange(3, 8), "")]


def test_tags_of_neighbouring_frames_are_one_segment(tmp_path):
    content = document(image(3, "fall"), image(4, "fall", "lie"), image(5, "lie"), image(6), image(9, "fall"))
    assert sorted(spans(read(tmp_path, content))) == [
        ("fall", FrameRange(3, 5), ""),
        ("fall", FrameRange(9, 10), ""),
        ("lie", FrameRange(4, 6), ""),
    ]


def test_tags_of_a_task_with_a_step_are_joined_over_it(tmp_path):
    content = document(image(0, "fall"), image(5, "fall"), image(15, "fall"), step="step=5")
    assert spans(read(tmp_path, content)) == [("fall", FrameRange(0, 10), ""), ("fall", FrameRange(15, 20), "")]


def test_tags_and_boxes_of_images_have_attributes(tmp_path):
    box = (
        '<image id="1" name="frame_000001"><box label="x" track_id="3">' + attribute("action", "run") + "</box></image>"
    )
    content = document(image(0, "x", more=attribute("action", "walk") + attribute("person", "p2")), box)
    found = read(tmp_path, content, label_attribute="action")
    assert [(each.label, each.person) for each in found.annotations] == [("walk", "p2"), ("run", "track 3")]


def test_a_projects_tasks_have_videos_of_their_own(tmp_path):
    tasks = "".join(f"<task><id>{number}</id><source>v{number}.mp4</source></task>" for number in (1, 2))
    content = document(
        '<track id="0" label="fall" task_id="2"><box frame="0" outside="0"/></track>',
        '<image id="4" name="frame_000004" task_id="1"><tag label="lie"/></image>',
        meta=f"<meta><project><id>9</id><tasks>{tasks}</tasks></project></meta>",
    )
    assert sorted((each.video, each.label) for each in read(tmp_path, content).annotations) == [
        ("v1.mp4", "lie"),
        ("v2.mp4", "fall"),
    ]


@pytest.mark.parametrize(
    "name", ["annotations.xml", "task_5/annotations.xml", "../../annotations.xml", "/etc/annotations.xml"]
)
def test_the_exported_zip_is_read_whatever_its_folders(tmp_path, name):
    found = read(tmp_path, zipped({"images/frame_000000.png": b"png", name: document(GOOD).encode()}))
    assert spans(found) == [("walk", FrameRange(90, 95), "")]


def zipped(files, **options):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def damaged_zip():
    content = bytearray(zipped({"annotations.xml": document(GOOD).encode()}))
    content[45] ^= 0xFF
    return bytes(content)


def encrypted_zip():
    content = bytearray(zipped({"annotations.xml": document(GOOD).encode()}))
    content[6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    return bytes(content)


def directory_bomb():
    content = bytearray(zipped({"annotations.xml": document(GOOD).encode()}))
    struct.pack_into("<L", content, content.rindex(b"PK\5\6") + 12, 0xFFFFFF00)
    return bytes(content)


def zip64_bomb(length, claimed, record_at):
    """A .zip whose list of files has ``length`` bytes in its ZIP64 record, and ``claimed`` in its 32-bit one."""
    content = io.BytesIO(b"PK\3\4")
    content.seek(length)
    content.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, length, 0))
    content.write(struct.pack("<4sLQL", b"PK\6\7", 0, record_at, 1))
    content.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, claimed, 0, 0))
    return content.getvalue()


def packed_otherwise():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("annotations.xml", document(GOOD))
    return content.getvalue()


LAUGHS = "<!DOCTYPE a [" + '<!ENTITY a "ha">' + '<!ENTITY b "&a;&a;&a;">' + "]>"
MORE = zip_member.MAX_DIRECTORY + 1
BAD_FILES = {
    "cut off": (document(GOOD)[:-20], "annotations_xml"),
    "only the declaration": ('<?xml version="1.0"?>', "annotations_xml"),
    "tags crossed": (document("<track><box></track></box>"), "annotations_xml"),
    "an attribute twice": (document('<track id="1" id="2"/>'), "annotations_xml"),
    "an attribute without quotes": (document("<track id=1/>"), "annotations_xml"),
    "a bare ampersand": (document('<track id="1" label="a & b"/>'), "annotations_xml"),
    "an unknown entity": (document('<track id="1" label="&walk;"/>'), "annotations_xml"),
    "entities in entities": (LAUGHS + "<annotations>&b;</annotations>", "annotations_xml"),
    "an external entity": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>',
        "annotations_xml",
    ),
    "an external document type": ('<!DOCTYPE a SYSTEM "http://example.org/a.dtd"><annotations/>', "annotations_xml"),
    "an empty document type": ("<!DOCTYPE annotations><annotations/>", "annotations_xml"),
    "a parameter entity": ('<!DOCTYPE a [<!ENTITY % p SYSTEM "x">%p;]><annotations/>', "annotations_xml"),
    "not UTF-8": (document(GOOD).encode().replace(b"walk", b"w\xff\xfek"), "annotations_xml"),
    "an unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotations/>', "annotations_xml"),
    "an odd encoding": ('<?xml version="1.0" encoding="idna"?><annotations/>', "annotations_xml"),
    "a control character": (document('<track id="1" label="a\x01b"/>'), "annotations_xml"),
    "a NUL": (document(GOOD).replace("walk", "wa\0lk"), "annotations_xml"),
    "nested deep": ("<annotations>" + "<a>" * 5000 + "</a>" * 5000 + "</annotations>", "annotations_xml"),
    "many attributes": (document("<track " + " ".join(f'a{n}="1"' for n in range(100)) + "/>"), "annotations_xml"),
    "text after the root": (document(GOOD) + "more", "annotations_xml"),
    "two roots": (document(GOOD) + "<annotations/>", "annotations_xml"),
    "an undeclared prefix is no problem, another root is": ("<x:annotations/>", "annotations_structure"),
    "HTML": ("<html><body>Sign in</body></html>", "annotations_structure"),
    "Pascal VOC": ("<annotation><filename>a.jpg</filename></annotation>", "annotations_structure"),
    "two tasks of one number": (
        document(meta="<meta><project><tasks><task><id>1</id></task><task><id>1</id></task></tasks></project></meta>"),
        "annotations_structure",
    ),
    "a damaged .zip": (damaged_zip(), "annotations_zip"),
    "a .zip cut off": (zipped({"annotations.xml": document(GOOD).encode()})[:-30], "annotations_zip"),
    "a .zip without annotations": (zipped({"labels.txt": b"walk"}), "annotations_zip"),
    "an empty .zip": (zipped({}), "annotations_zip"),
    "a task's backup": (zipped({"task.json": b"{}", "annotations.json": b"[]"}), "annotations_zip"),
    "a .zip of two annotations": (
        zipped({"a/annotations.xml": b"<a/>", "b/annotations.xml": b"<a/>"}),
        "annotations_zip",
    ),
    "an encrypted .zip": (encrypted_zip(), "annotations_zip"),
    "a .zip whose list is longer than it": (directory_bomb(), "annotations_zip"),
    "a .zip whose two lists differ": (zip64_bomb(MORE, 100, MORE), "too_large"),
    "a .zip whose record is elsewhere": (zip64_bomb(MORE, 0xFFFFFFFF, 0), "too_large"),
    "a .zip packed otherwise": (packed_otherwise(), "annotations_zip"),
    "a .zip in the .zip": (zipped({"annotations.xml": zipped({})}), "annotations_xml"),
}
BAD_ITEMS = {
    "no label": ('<track id="0"><box frame="0" outside="0"/></track>', "no_label"),
    "label empty": (track((0, 0), label=""), "no_label"),
    "label blank": (track((0, 0), label="  "), "no_label"),
    "label too long": (track((0, 0), label="w" * 1001), "bad_label"),
    "label with a control character": (track((0, 0), label="a&#133;b"), "bad_label"),
    "no shape": ('<track id="0" label="fall"></track>', "bad_track"),
    "other elements only": ('<track id="0" label="fall"><note frame="0"/></track>', "bad_track"),
    "outside everywhere": (track((0, 1), (1, 1)), "bad_track"),
    "frames in another order": (track((5, 0), (3, 0)), "bad_track"),
    "a frame twice": (track((5, 0), (5, 1)), "bad_track"),
    "outside a word": (track((5, "no")), "bad_track"),
    "outside empty": (track((5, "")), "bad_track"),
    "outside true": (track((5, "true")), "bad_track"),
    "no frame": ('<track id="0" label="fall"><box outside="0"/></track>', "bad_frame"),
    "frame empty": (track(("", 0)), "bad_frame"),
    "frame a word": (track(("first", 0)), "bad_frame"),
    "frame negative": (track((-1, 0)), "bad_frame"),
    "frame a fraction": (track(("1.5", 0)), "bad_frame"),
    "frame hexadecimal": (track(("0x10", 0)), "bad_frame"),
    "frame with other digits": (track(("٣", 0)), "bad_frame"),
    "frame huge": (track((9_999_999_999, 0)), "bad_frame"),
    "frame of 400 digits": (track(("9" * 400, 0)), "bad_frame"),
    "frame infinite": (track(("inf", 0)), "bad_frame"),
    "person too long": (track((0, 0), more=attribute("person", "p" * 2000)), "bad_label"),
    "image without a number": ('<image name="frame_000001"><tag label="fall"/></image>', "bad_frame"),
    "image number a word": ('<image id="one" name="frame_000001"><tag label="fall"/></image>', "bad_frame"),
    "image number negative": ('<image id="-1" name="frame_000001"><tag label="fall"/></image>', "bad_frame"),
    "tag without a label": ('<image id="1" name="frame_000001"><tag/></image>', "no_label"),
    "tag with an empty label": (image(1, ""), "no_label"),
    "tag with a long label": (image(1, "x" * 1001), "bad_label"),
    "tag at the top without a frame": ('<tag label="fall"/>', "bad_frame"),
}
OTHER_META = {
    "no video named": ({"meta": "<meta></meta>"}, track((0, 0)), "no_video_name"),
    "no meta": ({"meta": ""}, track((0, 0)), "no_video_name"),
    "video's name empty": ({"source": "  "}, track((0, 0)), "no_video_name"),
    "video's name with a line break": ({"source": "a\nb"}, track((0, 0)), "bad_video_name"),
    "video's name too long": ({"source": "v" * 5000}, track((0, 0)), "bad_video_name"),
    "a task of images": ({"meta": "<meta></meta>"}, image(0, "fall", name="ward/0001.jpg"), "no_video_name"),
    "a filter of another kind": ({"step": "every=5"}, track((0, 0)), "bad_frame"),
    "a step of nought": ({"step": "step=0"}, track((0, 0)), "bad_frame"),
    "a track of no task": (
        {"meta": "<meta><tasks><task><id>1</id></task><task><id>2</id></task></tasks></meta>"},
        track((0, 0)),
        "unknown_task",
    ),
    "a track of an unknown task": (
        {"meta": "<meta><tasks><task><id>1</id></task><task><id>2</id></task></tasks></meta>"},
        '<track id="0" label="x" task_id="3"><box frame="0"/></track>',
        "unknown_task",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_has_a_named_error(tmp_path, name):
    content, code = BAD_FILES[name]
    with pytest.raises(DataError) as raised:
        read(tmp_path, content, format="cvat")
    assert raised.value.code == code
    assert raised.value.fix


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_bad_item_is_named_and_the_rest_read(tmp_path, name):
    item, code = BAD_ITEMS[name]
    found = read(tmp_path, document(item, GOOD))
    assert [problem.code for problem in found.problems] == [code]
    assert spans(found) == [("walk", FrameRange(90, 95), "")]


@pytest.mark.parametrize("name", OTHER_META)
def test_tracks_of_no_known_video_are_named(tmp_path, name):
    meta, item, code = OTHER_META[name]
    found = read(tmp_path, document(item, **meta))
    assert [problem.code for problem in found.problems] == [code]
    assert not found.annotations


def test_a_label_attribute_that_a_track_lacks_is_named(tmp_path):
    found = read(
        tmp_path,
        document(track((0, 0)), GOOD.replace("/>", "><attribute name='a'>x</attribute></box>")),
        label_attribute="a",
    )
    assert [problem.code for problem in found.problems] == ["no_label"]
    assert [label for label, _, _ in spans(found)] == ["x"]


def test_an_unpacked_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(xml_events, "MAX_XML", 1 << 20)
    bomb = zipped({"annotations.xml": b"<annotations>" + b" " * (4 << 20) + b"</annotations>"})
    with pytest.raises(DataError) as raised:
        read(tmp_path, bomb)
    assert raised.value.code == "too_large"


@pytest.mark.parametrize("claimed", [100, 0xFFFFFFFF])
def test_a_long_list_of_a_zip_is_never_read_whole(tmp_path, claimed):
    content = zip64_bomb(4 * MORE, claimed, 0)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more files"), zip_member.open_member(io.BytesIO(content), "a", "a.zip"):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < zip_member.MAX_DIRECTORY


def test_files_of_a_zip_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_member, "MAX_FILES", 3)
    read(tmp_path, zipped({"1": b"", "2": b"", "annotations.xml": document(GOOD).encode()}))
    with pytest.raises(DataError) as raised:
        read(tmp_path, zipped({"1": b"", "2": b"", "3": b"", "annotations.xml": document(GOOD).encode()}))
    assert raised.value.code == "too_large"


def test_text_between_children_is_bounded_per_element():
    content, texts = b"<a>" + b"<b>xxxxxxxx</b>yyyyyyyy" * 50_000 + b"</a>", []
    xml_events.parse_xml(io.BytesIO(content).read, "a.xml", lambda *_: None, lambda _, text: texts.append(text))
    assert set(texts[:-1]) == {"xxxxxxxx"}
    assert len(texts[-1]) <= xml_events.MAX_TEXT


def test_one_huge_element_is_refused_before_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(xml_events, "CHUNK", 1 << 10)
    with pytest.raises(DataError) as raised:
        read(tmp_path, document(f'<track id="{"9" * 100_000}"/>'))
    assert raised.value.code == "too_large"


def test_a_zip_of_more_than_65535_files_is_read(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(65_600):
            archive.writestr(f"i/{number}", b"")
        archive.writestr("annotations.xml", document(GOOD))
    assert spans(read(tmp_path, content.getvalue())) == [("walk", FrameRange(90, 95), "")]
    assert len(content.getvalue()) < zip_member.MAX_DIRECTORY


def test_sixty_kinds_of_damage_are_tried():
    assert len(BAD_FILES) + len(BAD_ITEMS) + len(OTHER_META) >= 60
