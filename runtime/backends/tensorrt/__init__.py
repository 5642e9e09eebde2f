"""TensorRT: building, caching, loading and running engines."""
