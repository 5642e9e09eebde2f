"""The centre: rounds, aggregation, checkpoints. No torch, no ONNX Runtime."""
