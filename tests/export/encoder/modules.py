"""Tiny encoders that the tests export, as a user's own file has them."""

import torch
from torch import nn


class Image(nn.Module):
    """[N, 3, S, S] -> a map [N, 8, S / 4, S / 4]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())

    def forward(self, frames):
        return self.layers(frames)


class Video(nn.Module):
    """[B, 3, K, S, S] -> tokens [B, K', 6] after one class token, as a named output of two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv3d(3, 6, (2, 8, 8), stride=(2, 8, 8))
        self.first = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, frames, *, doubled=False):
        tokens = self.layer(frames).flatten(2).transpose(1, 2)
        first = self.first.expand(frames.shape[0], -1, -1)
        return {"tokens": torch.cat([first, tokens * (2 if doubled else 1)], 1), "first": first[:, 0]}


class FixedBatch(Image):
    def forward(self, frames):
        found = self.layers(frames)
        return torch.cat([found[index][None] for index in range(8 * (frames.shape[0] // 8))])


class NotFinite(Image):
    def forward(self, frames):
        return self.layers(frames) / 0.0


class Branching(Image):
    def forward(self, frames):
        found = self.layers(frames)
        return found if float(found.sum()) > 0 else -found


class Random(Image):
    def forward(self, frames):
        return self.layers(frames) + torch.rand(1)


class Text(Image):
    def forward(self, frames):
        return "a person"


def image(seed: int = 0):
    return Image(seed)


def broken():
    raise ValueError("no weights today")


def needs_package():
    import a_package_that_nobody_has  # noqa: F401


def nothing():
    return None
