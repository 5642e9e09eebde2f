"""PyTorch -> ONNX -> one bundle folder with its parity proof. The only package that needs PyTorch."""

from .encoder.settings import Encoder, Pooling, Preprocessing

__all__ = ["Encoder", "Pooling", "Preprocessing"]
