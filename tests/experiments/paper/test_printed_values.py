"""The paper's printed numbers, compared with each other and with counts."""

from __future__ import annotations

import pytest
from flamest.experiments.paper import printed_values
from flamest.experiments.paper.printed_values import (
    HMDB51,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_8,
    TABLE_9,
    UCF101,
)
from flamest.experiments.paper.resources import (
    BLIP_PARAMETERS,
    FLAMEST_INPUTS,
    SLOW_PARAMETERS,
    communication,
    head_parameters,
)

ROWS = {row.name: row for row in TABLE_1}
SLIPS = {"525,311": 525_313, "656,3855": 656_385, "797,457": 787_457}
DIMENSIONS = {"Video MAE": 768}  # 786 is printed


def test_pairs_are_sums_of_their_parts_with_slow_r50() -> None:
    assert ROWS["BLIP+Slow"].base_parameters == BLIP_PARAMETERS + SLOW_PARAMETERS
    assert ROWS["Slow"].base_parameters != SLOW_PARAMETERS
    assert "slowfast" in ROWS["Slow"].remark
    for name, part in (("I3D", "I3D"), ("ResNet-3D", "ResNet-3D")):
        whole = ROWS["BLIP"].base_parameters + ROWS[part].base_parameters
        assert ROWS[f"BLIP+{name}"].base_parameters == ROWS[f"BLIP text only+{name}"].base_parameters == whole


@pytest.mark.parametrize("row", [row for row in TABLE_1 if row.input_dimension], ids=lambda row: row.name)
def test_printed_head_counts_have_one_output_or_a_remark(row) -> None:
    counted = head_parameters(DIMENSIONS.get(row.name, row.input_dimension), 1)
    if row.fl_parameters in SLIPS:
        assert SLIPS[row.fl_parameters] == counted
        assert row.fl_parameters in row.remark
    else:
        assert int(row.fl_parameters.replace(",", "")) == counted


def test_equations_13_and_14_with_one_output_and_with_classes() -> None:
    paper = communication(1)
    assert paper.head == 1_573_889
    assert f"{paper.saved_against_full_model:.1%}" == "99.4%"
    assert f"{paper.saved_against_kd:.1%}" == "86.5%"
    assert f"{paper.saved_against_3d_student:.1%}" == "95.3%"
    with_classes = communication(101)
    assert (with_classes.head, with_classes.bytes_fp32) == (1_599_589, 6_398_356)
    assert with_classes.saved_against_kd < paper.saved_against_kd
    assert FLAMEST_INPUTS == 2816


def test_the_gains_in_the_text_follow_from_table_2() -> None:
    def gain(dataset: str, name: str, base: str) -> float:
        return round(TABLE_2[dataset][name].value - TABLE_2[dataset][base].value, 2)

    assert gain(UCF101, "BLIP+Slow", "KD") == 5.13
    assert gain(UCF101, "BLIP+Slow", "BLIP") == 18.05
    assert gain(HMDB51, "BLIP+Slow", "KD") == 4.58
    assert gain(HMDB51, "BLIP+I3D", "KD") == 2.71  # in the abstract, FLAMeST's
    assert "2.71" in TABLE_2[HMDB51]["BLIP+Slow"].remark


def test_contradicting_numbers_have_a_remark() -> None:
    assert TABLE_2[UCF101]["BLIP+Slow"].value != TABLE_8[UCF101]["IID", 4].value
    assert TABLE_8[UCF101]["IID", 4].remark
    assert TABLE_9[HMDB51][printed_values.CONCATENATION].value != TABLE_2[HMDB51]["BLIP+Slow"].value
    assert "cross-validation" in TABLE_9[HMDB51][printed_values.CONCATENATION].remark
    for dataset in printed_values.DATASETS:
        assert TABLE_3[dataset]["BLIP+Slow"].value != TABLE_4[dataset]["BLIP+Slow"].accuracy.value
        assert TABLE_4[dataset]["BLIP+Slow"].accuracy.remark


def test_every_table_has_both_data_sets_with_the_same_rows() -> None:
    for table in (TABLE_2, TABLE_3, TABLE_4, printed_values.TABLE_5, printed_values.TABLE_7, TABLE_8, TABLE_9):
        assert set(table) == set(printed_values.DATASETS)
        assert table[UCF101].keys() == table[HMDB51].keys()
    assert (len(TABLE_1), len(TABLE_2[UCF101]), len(TABLE_3[UCF101]), len(printed_values.TABLE_6)) == (15, 15, 15, 5)
