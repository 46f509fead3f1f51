import csv

from train.records import MetricsFile


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_continued_run_cuts_what_came_after_its_checkpoint(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.cut_after(0)
    for step in (1, 2, 3):
        file.append(step, {"loss": step / 10, "psnr": 30.0})
    with file.path.open("a") as torn:
        torn.write("4,lo")
    file.cut_after(2)
    file.append(3, {"loss": 0.25})
    assert rows(file.path) == [
        ["step", "metric", "value"],
        *(["1", "loss", "0.1"], ["1", "psnr", "30"], ["2", "loss", "0.2"], ["2", "psnr", "30"]),
        ["3", "loss", "0.25"],
    ]
