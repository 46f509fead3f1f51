import numpy as np

from scripts.evaluation.check_reader import composed_row, rendering_row, scatter


def test_true_renderings_are_read_right():
    row = rendering_row(64, count=16, seed=0)
    assert (row["count"], row["shape"], row["hue"], row["horizons"], row["specks"]) == (1.0, 1.0, 1.0, 1.0, 0.0)


def test_objects_that_are_apart_are_counted_exactly():
    row = composed_row(128, most=3, gap=2.0, count=6, seed=0)
    assert (row["count_exact"], row["mean_error"]) == (1.0, 0.0)


def test_scattered_objects_keep_their_gap():
    scenes = scatter(3, side=128, gap=4.0, rng=np.random.default_rng(0))
    assert scenes is not None
    centers = np.stack([scenes.center_y.numpy(), scenes.center_x.numpy()], axis=1)
    for one in range(3):
        for other in range(one):
            distance = np.hypot(*(centers[one] - centers[other]))
            assert distance > float(scenes.radius[one] + scenes.radius[other])
