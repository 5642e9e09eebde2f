"""ONNX graphs: specification, export, and the checks of their operators."""
