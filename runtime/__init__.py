"""From a bundle and a video file to an embedding: the paper's Figure 1, without PyTorch."""
