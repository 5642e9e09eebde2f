"""From a module to an ONNX graph: specification, export, rewrites, checks of operators."""
