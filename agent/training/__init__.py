"""Local training of the head as one ONNX graph: no torch on the silo."""
