"""CUDA's runtime for the scripted TensorRT: memory and streams of fake_cuda.py."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[4] / "runtime" / "backends" / "tensorrt"))

from fake_cuda import FakeCuda

runtime = FakeCuda()
