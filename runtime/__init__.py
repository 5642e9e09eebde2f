"""From a bundle and a video file to numbers: sessions, video, keyframes, caption, embeddings."""
