from scripts.evaluation.panorama_rows import chosen_panoramas, panorama_rows


def test_rows_differ_in_name():
    labels = [row.label for row in panorama_rows()]
    assert len(set(labels)) == len(labels)


def test_rows_are_chosen_by_name_and_other_names_are_left():
    everything = list(panorama_rows())
    assert chosen_panoramas([]) == (everything, [])
    assert chosen_panoramas(["plain"]) == (everything, ["plain"])
    found, others = chosen_panoramas([" multidiffusion, CLOSED loop", "plain"])
    assert [row.label for row in found] == ["MultiDiffusion, closed loop"]
    assert others == ["plain"]
