"""Encoders of the exporter's own: any PyTorch module, or a model of the Hugging Face hub or of timm, in a bundle."""
