import pytest

from tests.behaviour.sampling import tile_errors


@pytest.mark.heavy
def test_tiles_with_the_norms_of_the_whole_are_nearer_than_tiles_with_their_own(monkeypatch):
    monkeypatch.setattr(tile_errors, "SCENES", 1)
    monkeypatch.setattr(tile_errors, "SHRUNK", (2,))
    rows = tile_errors.tile_errors()
    for tile in {row["tile"] for row in rows} - {"none"}:
        error = {row["norms"]: row["mean_levels"] for row in rows if row["tile"] == tile}
        assert 0 < error["of the whole"] < 0.5 * error["of each tile"]
    assert rows[-1]["work"] == 1.25
