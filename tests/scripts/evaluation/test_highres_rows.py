import pytest

from scripts.evaluation.highres import Row
from scripts.evaluation.highres_rows import ABLATIONS, ABOVE, PANORAMAS, ROWS, chosen, published_panorama
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


def test_synchronisation_as_published_has_its_own_loss_and_weight(tmp_path):
    row = published_panorama(tmp_path)
    (method,) = row.methods
    assert (method.loss, method.sync_weight, method.closed_loop, row.is_panorama) == (tmp_path, 20.0, True, True)
    assert row.label not in {other.label for other in PANORAMAS}
