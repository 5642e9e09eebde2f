"""In place of NVIDIA's package, for the scripted TensorRT."""
