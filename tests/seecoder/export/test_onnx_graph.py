"""The ONNX graph gives what the encoder gives."""

import json

import pytest
import torch

from seecoder.export.exporting import export_encoder, probe_picture


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_export_agrees_at_any_fixed_size(build, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = build["encoder"](pooled_dim=12, position_aware=True)
    report = export_encoder(encoder, tmp_path / "out", "onnx", size=(40, 72))
    assert report.difference < 1e-4
    assert (tmp_path / "out" / "encoder.onnx").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["context_dim"] == 32
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "encoder.onnx"))
    assert [node.name for node in session.get_outputs()] == ["context", "pooled"]
    with torch.no_grad():
        expected = encoder.encode(probe_picture(40, 72))
    context, pooled = session.run(None, {"pixels": probe_picture(40, 72).numpy()})
    torch.testing.assert_close(torch.from_numpy(context), expected.context, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.from_numpy(pooled), expected.pooled, atol=1e-4, rtol=0)
