import csv

import pytest

import train.run.metrics_file
from train.run.metrics_file import MetricsFile, best_of, read_metrics


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_continued_run_cuts_what_came_after_its_checkpoint(tmp_path, capsys):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.cut_after(0)
    for step in (1, 2, 3):
        file.append(step, {"loss": step / 10, "psnr": 30.0})
    with file.path.open("a") as torn:
        torn.write("4,lo")
    file.cut_after(2)
    assert capsys.readouterr().out == f"note: 2 lines of {file.path} after step 2 are cut\n"
    file.append(3, {"loss": 0.25})
    assert rows(file.path) == [
        ["step", "metric", "value"],
        *(["1", "loss", "0.1"], ["1", "psnr", "30"], ["2", "loss", "0.2"], ["2", "psnr", "30"]),
        ["3", "loss", "0.25"],
    ]


def test_what_a_full_disk_had_no_place_for_comes_later(tmp_path, monkeypatch, capsys):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.cut_after(0)
    file.append(1, {"loss": 0.5})

    class Full:
        def __init__(self, target, **_):
            self.target = target

        def writerows(self, _):
            self.target.write("2,lo")
            self.target.flush()
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train.run.metrics_file.csv, "writer", Full)
        file.append(2, {"loss": 0.25})
        file.append(3, {"loss": 0.125})
    assert rows(file.path) == [["step", "metric", "value"], ["1", "loss", "0.5"]]
    assert "NOT LOGGED at step 3" in capsys.readouterr().out
    file.append(4, {"loss": 1.0})
    values = [["1", "loss", "0.5"], ["2", "loss", "0.25"], ["3", "loss", "0.125"], ["4", "loss", "1"]]
    assert rows(file.path)[1:] == values


def test_what_a_power_cut_left_is_passed_over(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.cut_after(0)
    file.append(1, {"loss": 0.5})
    with file.path.open("ab") as torn:
        torn.write(bytes(40) + b"\n5,loss\n\xff\xfe,loss,0.3\n2,loss,0.25\n")
    assert read_metrics(file.path) == {"loss": [(1, 0.5), (2, 0.25)]}
    file.cut_after(9)
    assert rows(file.path)[1:] == [["1", "loss", "0.5"], ["2", "loss", "0.25"]]


def test_a_disk_that_is_full_at_the_start_costs_lines_not_the_run(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    file = MetricsFile(tmp_path / "metrics.csv")
    with monkeypatch.context() as patch:
        patch.setattr(train.run.metrics_file, "atomic_path", full)
        file.cut_after(0)
    assert "NOT CUT" in capsys.readouterr().out
    file.append(1, {"loss": 0.5})
    assert rows(file.path) == [["step", "metric", "value"], ["1", "loss", "0.5"]]


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,metric,value\n2,held,0.5\n4,held,0.3\n6,held,nan\n8,held,0.3\n8,other,1\n8,held")
    return path


def test_half_a_line_is_left_out(metrics):
    found = read_metrics(metrics)
    assert [step for step, _ in found["held"]] == [2, 4, 6, 8]
    assert found["other"] == [(8, 1.0)]


@pytest.mark.parametrize(("steps", "expected"), [({2, 4, 6, 8}, (4, 0.3)), ({2, 6}, (2, 0.5)), ({6}, None), ((), None)])
def test_the_best_is_the_first_lowest_finite_of_those_that_count(metrics, steps, expected):
    assert best_of(metrics, "held", steps) == expected
    assert best_of(metrics, "absent", steps) is None
