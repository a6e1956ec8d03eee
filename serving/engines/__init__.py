"""What computes the outputs: PyTorch in several precisions, ONNX Runtime. ``choice.py`` finds which of them to take."""
