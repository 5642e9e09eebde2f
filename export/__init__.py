"""PyTorch -> ONNX -> one bundle folder with its parity proof. The only room that needs torch."""
