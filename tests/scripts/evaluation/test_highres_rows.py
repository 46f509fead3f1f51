import pytest

from scripts.evaluation.highres import Row
from scripts.evaluation.highres_rows import ABLATIONS, ABOVE, PANORAMAS, ROWS, chosen
from seecoder.sampling import ScaleCrafter


def test_rows_are_chosen_by_name_in_the_order_of_the_table():
    assert [row.label for row in chosen([])[0]] == [row.label for row in ROWS]
    assert [row.label for row in chosen(["DemoFusion", "plain"])[0]] == ["plain", "DemoFusion"]
    assert chosen(["ablations"]) == (list(ABLATIONS), [])
    every_row = ROWS + ABLATIONS + PANORAMAS
    assert len({row.label for row in every_row}) == len(every_row)
    rows, panoramas = chosen([" multidiffusion, CLOSED loop", "plain"])
    assert [row.label for row in (*rows, *panoramas)] == ["plain", "MultiDiffusion, closed loop"]
    with pytest.raises(ValueError, match="unknown"):
        chosen(["StretchCrafter"])


def test_rows_say_where_they_belong():
    assert Row("everywhere").fits((7, 7))
    assert not Row("twice", [ScaleCrafter()], factors=((2, 2),)).fits((3, 3))
    assert all(set(row.factors) <= {(1, 1), *ABOVE} for row in ROWS + ABLATIONS)
