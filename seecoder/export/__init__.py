"""From a training run to files that others load: diffusers folders, released files, ONNX."""
