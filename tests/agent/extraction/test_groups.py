"""Groups by the rules of groups.py, over the names that data sets, cameras, desktops and people give their files."""

import pytest
from flamest.agent.extraction.groups import (
    RULE_WORDS,
    ClipRules,
    GroupRule,
    default_group,
    group_of,
    matches_pattern,
    pattern_problem,
)

KNOWN = """
v_SoccerJuggling_g23_c01 | SoccerJuggling | SoccerJuggling_g23
v_ApplyEyeMakeup_g01_c06 | ApplyEyeMakeup | ApplyEyeMakeup_g01
v_HandStandPushups_g25_c07 | HandstandPushups | HandStandPushups_g25
hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6 | cartwheel | hmdb51_Turnk_r_Pippi_Michel
6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3 | shoot_bow | 6arrowswithin30seconds
6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3 | | 6arrowswithin30seconds_shoot_bow
Golf_Tips_-_300+_Yards!!!_golf_f_nm_np1_fr_med_0 | golf | Golf_Tips_-_300+_Yards!!!
TrumanShow_wave_f_nm_np1_fr_med_26 | wave | TrumanShow
person1_walk_walk_f_cm_np1_fr_med_26 | walk | person1_walk
AdvancedBoxingTechniquesandExercises_punch_u_nm_np1_ba_med_23 | punch | AdvancedBoxingTechniquesandExercises
-0Ym9n5dk9M_000010_000020 | wave | -0Ym9n5dk9M
person1_wal_000010_000020 | walk | person1_wal
set1_26_5_2 | kick | set1_5
set2_12_7_4 | punch | set2_7
"""

SAME = {  # names that are of one person or scene: in one group
    "numbered takes": "walk: person1_walk_01 person1_walk_02 Person_01_walk_take3 person-1.walk.4",
    "KTH": "walking: person01_walking_d1_uncomp person01_walking_d2_uncomp person01_boxing_d4",
    "Weizmann": "run: lena_run1 lena_run2 lena_run",
    "NTU RGB+D": "A013: S001C002P003R002A013 S001C003P003R001A013_rgb S002C001P003R002A001",
    "BIDS": "walk: sub-01_ses-02_task-walk_run-03 sub-01_ses-01_task-walk_run-01",
    "UP-Fall": "fall: Subject1Activity1Trial1Camera1 Subject1Activity3Trial2Camera2",
    "UR Fall": "fall: fall-01-cam0 fall-01-cam1 fall-01-cam0-rgb",
    "Toyota Smarthome": "drink: Drink.Fromcup_p02_r00_v02_c03 Drink.Fromcup_p02_r01_v04_c05",
    "EPIC-Kitchens": "cut: P01_101 P01_102",
    "50 Salads": "cut: rgb-01-1 rgb-01-2",
    "GTEA": "Cheese: S1_Cheese_C1 S1_Cheese_C2",
    "Diving48": "dive: B7a9NECcWBg_00012 B7a9NECcWBg_00013",
    "pieces of a YouTube video": "dive: QOlSCBRmfWY_1 QOlSCBRmfWY_12",
    "VIRAT": "carry: VIRAT_S_010204_05_000856_000890 VIRAT_S_010204_05_000856_000912",
    "chapters of a GoPro recording": "walk: GX010042 GX020042 GX030042",
    "chapters of an older GoPro": "walk: GOPR0042 GP010042 GP020042",
    "pieces of a phone's video": "fall: VID_20231105_143000_01 VID_20231105_143000_02",
    "pieces of a CCTV recording": "fall: ch01_20240101120000_001 ch01_20240101120000_002",
    "UUIDs with numbers": "fall: 3f2504e0-4f89-11d3-9a0c-0305e82c3301_1 3f2504e0-4f89-11d3-9a0c-0305e82c3301-2",
    "Windows copies of a camera's file": "fall: IMG_0001(2) IMG_0001(3) IMG_0001-Copy",
    "a person's letter": "walk: patientB_walk_01 Patient_B_fall_02",
    "letters and the action": "walk: a_walk_01 a_walk_02 a_walk3",
    "a name and the action": "walk: anna_walk_01 anna_walk_02 anna_walking3 anna_01_walk",
    "a place and the action": "fall: kitchen_fall_01 kitchen_fall_02",
    "a subject at the end": "Lie: Lie_01_S02 Lie_02_S02 Lie_03_s2",
    "Breakfast": "cereals: P03_cam01_P03_cereals P03_cam02_P03_cereals P03_webcam01_P03_milk",
    "a short id": "walk: s01_walk_take3 s01_walk_take4 s01_walk_1",
    "a numbered room": "fall: room12_001 room12_002",
    "ShanghaiTech": "normal: 01_0014 01_0015",
}

APART = {  # names that only count: every clip is a group of its own
    "clips": "fall: clip_001 clip_002 clip_500 Clip003 video1 video_2 film-3",
    "the label": "walk: walk_001 walk_002 walk003 walking_4 Walk-5",
    "another word for the label": "gait: walk_001 walk_002 walk_500",
    "a label of two words": "hand_shake: handShake_0001 handshake_0002 hand_shake_0003 HandShake4",
    "numbers": "fall: 1 2 00001 00002 000123",
    "Windows's numbering": "fall: fall(1) fall(2) fall(500) video(1)",
    "cameras' counters": "fall: DSC_0001 DSC_0002 MVI_1234 MVI_1235 IMG_0001 DJI_0001 C0001 P1000123 GX010042 GX010043",
    "moments": "fall: 20231105_143000 20231105_143100 IMG_20231105_143000 PXL_20231105_143000123 2023-11-05_14.30.00",
    "Windows's camera": "fall: WIN_20231105_14_30_00_Pro WIN_20231105_14_31_00_Pro",
    "CCTV": "fall: ch01_20240101120000 ch02_20240101120000 NVR_ch1_main_20240101120000_20240101123000",
    "MEVA": "fall: 2018-03-05.13-10-00.13-15-00.bus.G331 2018-03-05.13-15-00.13-20-00.bus.G331",
    "UUIDs": "fall: 3f2504e0-4f89-11d3-9a0c-030582330101 3f2504e0-4f89-11d3-9a0c-030582330102",
    "Charades": "fall: 46GP8 46GP9 N11GT",
    "ActivityNet and Kinetics without times": "fall: v_QOlSCBRmfWY v_--1DO2V4K74 R6llTwEh07w SOX5yA1l24A",
    "Something-Something, Jester": "fall: 1 34870 78687",
    "Hollywood2": "fall: actioncliptrain00001 actioncliptrain00002 sceneclipautoautotrain00001",
    "UCF-Crime": "Abuse: Abuse001_x264 Abuse002_x264 Normal_Videos_003_x264",
    "a camera's files": "fall: cam1_0001 cam1_0002 camera2-0001 channel_3_0001",
    "days, wards and sites": "fall: day1_001 day1_002 ward3_001 site2_004 hospital_001 hospital_fall_002 2023_001",
    "manners": "walk: slow_walk_001 slow_walk_002 fast_walk_001 left_walk_1 normal_walk_2",
    "words around the label": "fall: fall_from_bed_001 fall_from_bed_002 real_fall_3",
    "a word and a number alone": "walk: anna_01 anna_02 morning_001",
    "odd names": "fall: !!! _001 _002 - (HQ)300+Yards ünïcode",
    "ways to do it": "fall: fall_slipping_01 fall_slipping_02 backward_fall_by_slipping_3 backward_fall_by_slipping_4",
    "splits": "fall: train_0001 train_0002 test_0001 val-3",
}


def names(row):
    label, _, stems = row.partition(": ")
    return label, stems.split()


@pytest.mark.parametrize("row", KNOWN.strip().splitlines())
def test_known_data_sets_give_the_groups_that_they_gave(row):
    stem, label, group = (part.strip() for part in row.split("|"))
    assert default_group(stem, label or None) == group


@pytest.mark.parametrize("scheme", SAME)
def test_clips_of_one_person_or_scene_are_one_group(scheme):
    label, stems = names(SAME[scheme])
    assert len({default_group(stem, label) for stem in stems}) == 1


@pytest.mark.parametrize("scheme", APART)
def test_names_that_only_count_are_groups_of_their_own(scheme):
    label, stems = names(APART[scheme])
    groups = {stem: default_group(stem, label) for stem in stems}
    assert len(set(groups.values())) == len(stems), groups


@pytest.mark.parametrize(
    ("stem", "label", "group"),
    [
        ("WhatsApp Video 2023-11-05 at 14.30.00", "fall", "WhatsApp Video 2023-11-05 at 14.30.00"),
        ("2023-11-05 14-30-00", "fall", "2023-11-05 14-30-00"),
        ("fall - Copy (2)", "fall", "fall - Copy (2)"),
        ("fall (17)", "fall", "fall (17)"),
        ("IMG_0001 (2)", "fall", "IMG_0001"),
        ("subject_03 walk 2", "walk", "subject3"),
        ("superuser1_walk_2", "walk", "superuser1"),
        ("person_walk_01", "walk", "person_walk_01"),
        ("lena walk take 2", "walk", "lena"),
        ("S001C002P003R002A013_rgb", "A013", "P003"),
        ("anything else", "kick", "anything else"),
        ("", "kick", ""),
    ],
)
def test_the_group_of_a_name_by_default(stem, label, group):
    assert default_group(stem, label) == group


def test_different_persons_are_different_groups():
    stems = ["person1_walk_01", "person2_walk_01", "person11_walk_01", "personA_walk_01", "subject1_walk_01"]
    assert len({default_group(stem, "walk") for stem in stems}) == len(stems)
    assert default_group("lena_run1", "run") != default_group("daria_run1", "run")


RULES = [(rule, GroupRule(rule, "(?P<group>person[0-9]+)" if rule == "pattern" else "")) for rule in RULE_WORDS]


@pytest.mark.parametrize(
    ("path", "label", "groups"),
    [
        ("walk/person2/01.mp4", "walk", ["person2", "01", "person2", "01", "person2"]),
        ("walk/anna/01.mp4", "walk", ["anna", "01", "anna", "01", "01"]),
        ("walk/cam1/01.mp4", "walk", ["01", "01", "cam1", "01", "01"]),
        ("ward-3/fall/01.mp4", "fall", ["ward-3/01", "01", "ward-3", "01", "01"]),
        ("train/person2/fall/x_01.mp4", "fall", ["person2", "x_01", "person2", "x", "person2"]),
        ("patient-17/0001.mp4", "fall", ["patient17", "0001", "patient-17", "0001", "0001"]),
        ("walk/walk_001.mp4", "walk", ["walk_001", "walk_001", "walk_001", "walk", "walk_001"]),
        ("walk/walk (2).mp4", "walk", ["walk (2)", "walk (2)", "walk (2)", "walk", "walk (2)"]),
        ("lena_run1.avi", "run", ["lena", "lena_run1", "lena_run1", "lena_run", "lena_run1"]),
    ],
)
def test_each_rule_gives_its_group(path, label, groups):
    assert [group_of(path, label, rule) for _, rule in RULES] == groups


def test_a_group_is_never_empty():
    for path in ("a/.mp4", "7.mp4", "a/(1).mp4", "a/-.mp4", "___.mp4"):
        assert all(group_of(path, "a", rule) for _, rule in RULES)
    assert group_of("x7.mp4", "a", GroupRule("pattern", "y*(?P<group>y*)")) == "x7"


def test_a_pattern_that_cannot_be_used_is_named():
    assert pattern_problem("(?P<group>x").startswith("'(?P<group>x' is not a regular expression")
    assert "has no (?P<group>" in pattern_problem("(person[0-9]+)")
    assert pattern_problem("(?P<group>person[0-9]+)") == ""
    rule = GroupRule("pattern", "(?P<group>person[0-9]+)")
    assert matches_pattern("walk/person2/01.mp4", rule)
    assert not matches_pattern("walk/anna/01.mp4", rule)
    assert matches_pattern("walk/anna/01.mp4", GroupRule())


@pytest.mark.parametrize(
    ("folders", "parent", "top"),
    [
        ("", None, None),
        ("walk", "walk", "walk"),
        ("train/walk", "walk", "walk"),
        ("Test/walk/person2", "person2", "walk"),
        ("walk/person2", "person2", "walk"),
        ("ward-3/fall", "fall", "ward-3"),
        ("val", "val", "val"),
    ],
)
def test_the_class_is_the_inner_or_the_outer_folder(folders, parent, top):
    parts = tuple(folders.split("/")) if folders else ()
    assert ClipRules().label_of(parts) == parent
    assert ClipRules(label_folder="top").label_of(parts) == top


@pytest.mark.parametrize(
    ("path", "label", "group"),
    [
        ("anna/walk/01.mp4", "walk", "anna"),
        ("anna/fall/IMG_0002.mp4", "fall", "anna"),
        ("train/ben/walk/01.mp4", "walk", "ben"),
        ("clinic/ben/walk/01.mp4", "walk", "ben"),
        ("collection/train/walk/01.mp4", "walk", "01"),
        ("007/walk/20231105_143000.mp4", "walk", "007"),
        ("ward-3/fall/0001.mp4", "fall", "ward-3/0001"),
        ("train/fall/0001.mp4", "fall", "0001"),
        ("anna/walk/kitchen_walk_1.mp4", "walk", "kitchen"),
        ("UCF101/Punch/v_Punch_g23_c01.avi", "Punch", "Punch_g23"),
    ],
)
def test_a_bare_name_is_of_the_person_whose_folder_holds_the_classes(path, label, group):
    assert group_of(path, label, GroupRule()) == group


def test_numbers_of_ids_and_cases_are_persons():
    stems = {"id_0007_walk_1": "id7", "ID-8_fall": "id8", "case_12_walk": "case12", "record_0007_walk": "record_0007"}
    assert {stem: default_group(stem, "walk") for stem in stems} == stems


def test_a_resolution_is_no_person():
    stems = ["p1080_01", "p1080_02", "clip_p720", "clip_p720_2"]
    assert len({default_group(stem, "walk") for stem in stems}) == len(stems)
