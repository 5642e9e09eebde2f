"""Rows of a session: memory that its inputs are read from and its outputs are written to, without a copy."""

import numpy as np
import pytest
from flamest.base.errors import GraphError
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
from flamest.runtime.backends.row_moves import Move, clear_rows, moves_of, put_rows
from onnx import TensorProto, helper


@pytest.fixture(params=["onnxruntime", "openvino"])
def shifting(request, tmp_path):
    """present = the last two positions of past and new, as the text graph's window."""
    nodes = [
        helper.make_node("Concat", ["past", "new"], ["all"], axis=1),
        helper.make_node("Slice", ["all", "from", "to", "axis"], ["present"]),
    ]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", length])
        for name, length in (("past", 2), ("new", 1), ("present", 2))
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("from", 1), ("to", 9), ("axis", 1))
    ]
    graph = helper.make_graph(nodes, "shifting", tensors[:2], tensors[2:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "shifting.onnx"
    path.write_bytes(model.SerializeToString())
    return open_session(path, threads=1) if request.param == "onnxruntime" else OpenVinoSession.open(path, threads=1)


def new(*values):
    return np.array(values, np.float32)[:, None]


def test_two_sets_of_rows_alternate_as_past_and_present(shifting):
    one, other = (shifting.rows("past", (3, 2)) for _ in range(2))
    for step in range(1, 4):
        feeds = {"past": one.first(2), "new": new(step, 10 * step)}
        present = shifting.run_values(feeds, ["present"], into={"present": other})["present"]
        one, other = other, one
        assert one.first(2) is present
    np.testing.assert_array_equal(one.first(3).numpy(), [[2, 3], [20, 30], [0, 0]])  # the third row is not written


def test_rows_are_put_copied_and_cleared_one_by_one(shifting):
    rows = shifting.rows("past", (3, 2))
    value = shifting.value(np.array([[1, 2], [3, 4]], np.float32))
    rows.put(2, value, 1)
    rows.copy(0, 2)
    rows.put(1, value, 0)
    rows.clear(2)
    assert rows.shape == (3, 2)
    np.testing.assert_array_equal(rows.first(3).numpy(), [[3, 4], [1, 2], [0, 0]])


def test_neighbours_are_one_move_and_each_row_arrives(shifting):
    moves = moves_of([(0, 1), (1, 2), (3, 3), (2, 0)])
    assert moves == [Move(0, 1, 2), Move(3, 3, 1), Move(2, 0, 1)]
    rows = {"past": shifting.rows("past", (5, 2))}
    put_rows(rows, {"past": shifting.value(np.arange(8, dtype=np.float32).reshape(4, 2))}, moves)
    np.testing.assert_array_equal(rows["past"].first(5).numpy(), [[2, 3], [4, 5], [0, 1], [6, 7], [0, 0]])
    clear_rows(rows.values(), moves[:1])
    np.testing.assert_array_equal(rows["past"].first(4).numpy(), [[0, 0], [0, 0], [0, 1], [6, 7]])


def test_a_value_over_rows_sees_what_is_changed_later(shifting):
    rows = shifting.rows("past", (2, 2))
    seen = rows.first(2)
    rows.put(1, shifting.value(np.array([[5, 6]], np.float32)), 0)
    np.testing.assert_array_equal(shifting.run({"past": seen, "new": new(7, 8)})["present"], [[0, 7], [6, 8]])


def test_rows_that_do_not_fit_an_output_are_an_error(shifting):
    rows = shifting.rows("past", (2, 5))
    with pytest.raises(GraphError):
        shifting.run_values(
            {"past": np.zeros((2, 2), np.float32), "new": new(1, 2)}, ["present"], into={"present": rows}
        )
