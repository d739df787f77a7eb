import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.stages.circular_memory.writes import (
    is_under_xla,
    journal,
    put_back,
    without_journal,
    write_rows,
    write_whole,
)


def variable(value, dtype="float32"):
    return keras.Variable(np.array(value), dtype=dtype, trainable=False)


def test_rows_are_written_in_place_where_it_is_wanted(mode):
    rows = variable([[1, 1], [2, 2], [3, 3]], "int8")
    write = in_mode(lambda wanted, new: write_rows(rows, tf.constant([2, 0]), new, only_if=wanted), mode)
    write(tf.constant(False), tf.constant([[9.0, 9.0], [8.0, 8.0]]))
    assert rows.numpy().tolist() == [[1, 1], [2, 2], [3, 3]]
    write(tf.constant(True), tf.constant([[9.0, 9.0], [8.0, 8.0]]))
    assert rows.numpy().tolist() == [[8, 8], [2, 2], [9, 9]]


@pytest.mark.parametrize("is_wanted", [False, True])
def test_what_a_step_wrote_is_put_back_newest_first(mode, is_wanted):
    rows, count = variable([1.0, 2.0, 3.0]), variable(5, "int64")

    def step(wanted):
        with journal() as noted:
            write_rows(rows, tf.constant([1]), tf.constant([7.0]))
            write_rows(rows, tf.constant([1, 2]), tf.constant([8.0, 9.0]))
            write_whole(count, count.value + 2)
            with without_journal():
                write_rows(rows, tf.constant([0]), tf.constant([6.0]))
        put_back(noted, wanted)

    in_mode(step, mode)(tf.constant(is_wanted))
    assert rows.numpy().tolist() == ([6.0, 2.0, 3.0] if is_wanted else [6.0, 8.0, 9.0])  # one was not noted
    assert int(count) == (5 if is_wanted else 7)


def test_a_journal_is_closed_after_its_step_also_by_an_error():
    rows = variable([1.0])
    with pytest.raises(ZeroDivisionError), journal() as noted:
        raise ZeroDivisionError
    write_rows(rows, tf.constant([0]), tf.constant([2.0]))
    assert noted == []


def test_xla_is_seen_from_within_loops_and_functions_that_it_compiles(mode):
    found = []

    def look():
        found.append(is_under_xla())
        tf.while_loop(lambda i: i < 1, lambda i: [found.append(is_under_xla()) or i + 1], [tf.constant(0)])
        tf.function(lambda: found.append(is_under_xla()))()

    in_mode(look, mode)()
    assert found == [mode == "xla"] * 3
    assert not is_under_xla()
