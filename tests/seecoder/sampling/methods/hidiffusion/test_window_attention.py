import pytest
import torch

from seecoder.sampling.methods.hidiffusion.window_attention import from_windows, to_windows


@pytest.mark.parametrize("frame", [(8, 12), (6, 10), (7, 8)])
@pytest.mark.parametrize("quarter", range(4))
def test_windows_are_put_back_where_they_were_cut(frame, quarter) -> None:
    tokens = torch.randn((2, frame[0] * frame[1], 5))
    cut = to_windows(tokens, frame, quarter)
    assert cut.shape == ((2, *tokens.shape[1:]) if frame[0] % 2 else (8, tokens.shape[1] // 4, 5))
    assert torch.equal(from_windows(cut, frame, quarter), tokens)


def test_a_window_is_a_quarter_of_the_frame() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    assert to_windows(tokens, (4, 4), 0)[0].flatten().tolist() == [0, 1, 4, 5]
    assert to_windows(tokens, (4, 4), 2)[0].flatten().tolist() == [5, 6, 9, 10]
