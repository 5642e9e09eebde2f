"""Video files: decoder process, frames, preprocessing."""
