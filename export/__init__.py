"""PyTorch -> ONNX -> one bundle folder with its parity proof. The only package that needs PyTorch."""
