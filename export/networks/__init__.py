"""The networks that a bundle is made of, as PyTorch modules that only see tensors."""
