"""Tables, numbers and intervals as markdown; rows grouped; bars of intervals."""

from benchmarks.kit import timing
from benchmarks.kit.figures import error_bars
from benchmarks.kit.records import grouped, newest, without_directories
from benchmarks.kit.tables import number, shown, table


def test_a_table_is_markdown_and_escapes_what_would_part_a_cell():
    lines = table(("a", "b"), [["1", "|x|"], ["2", "y"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| 1 | \\|x\\| |", "| 2 | y |"]
    assert table(("a",), []) == "| a |\n| --- |"


def test_numbers_and_intervals_that_are_not_there_are_dashes():
    assert (number(None), number(1.239), number(2, ".3g")) == ("-", "1.24", "2")
    assert (shown(None), shown([1, 0.5, 2], 1)) == ("-", "1.0 [0.5, 2.0]")


def test_rows_are_grouped_by_fields_and_the_newest_keeps_its_place():
    rows = [{"seed": 0, "x": 1}, {"seed": 1, "x": 2}, {"seed": 0, "x": 3}]
    assert grouped(rows, "seed") == {(0,): [rows[0], rows[2]], (1,): [rows[1]]}
    assert newest(rows, "seed") == [rows[2], rows[1]]
    lists = [{"cuts": [0.1, 0.5]}, {"cuts": [0.1]}, {"cuts": [0.1, 0.5]}, {}]
    assert [len(some) for some in grouped(lists, "cuts").values()] == [2, 1, 1]


def test_bars_reach_to_the_ends_of_their_intervals():
    middle, bars = error_bars([[2, 0.5, 5], [3, 3.5, 4]])
    assert middle.tolist() == [2, 3]
    assert bars.tolist() == [[1.5, 0], [3, 1]]  # a percentile interval may leave its value out


def test_a_rate_is_the_amount_over_the_seconds_of_the_work(monkeypatch):
    clock = iter((10.0, 14.0))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    done = []
    assert timing.rate(lambda: done.append(1), 8)() == 2.0
    assert done == [1]


def test_a_row_names_files_and_not_folders():
    command = "evaluate.py goals --data /home/me/held.jsonl --out runs/a --x=/etc/b"
    assert without_directories(command) == (
        "evaluate.py goals --data held.jsonl --out runs/a --x=/etc/b"
    )
