"""Work in other processes: every task once, errors come through."""

import pytest
import torch

from data.shards.building.processes import in_processes, one_thread


@pytest.mark.heavy
def test_every_task_comes_back_with_its_result():
    results = dict(in_processes(pow, 2, [(3,), (5,), (8,)], workers=1))
    assert results == {(3,): 8, (5,): 32, (8,): 256}


@pytest.mark.heavy
def test_an_error_of_the_work_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(in_processes(pow, 0, [(-1,)], workers=1))


def test_one_thread_is_for_the_work_inside_only():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
