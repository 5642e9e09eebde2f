"""Every environment variable that FLAMeST reads or sets, in one place; docs/reference/environment.md lists them.

No other module reads ``os.environ`` by a name: ``TRACEBACK.value()``. Settings that a run depends on are in the TOML
files and the options of commands; variables are for what an installation or a container decides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """An environment variable: its meaning for the person who sets it."""

    name: str
    meaning: str
    default: str  # its effect when it is not set
    readers: str  # commands or parts that read it

    def value(self) -> str:
        """Return its value now; an empty text when it is not set."""
        return os.environ.get(self.name, "")


LOG_FORMAT = Variable(
    "FLAMEST_LOG",
    "Format of the log: logfmt or json. Wins over [log] format in agent.toml and coordinator.toml.",
    "[log] format of the settings file",
    "flamest-agent run, flamest-coordinator run",
)
LOG_LEVEL = Variable(
    "FLAMEST_LOG_LEVEL",
    "The least serious events to log: debug, info, warning or error. Wins over [log] level in agent.toml and "
    "coordinator.toml; --log-level wins over both.",
    "[log] level of the settings file",
    "flamest-agent run, flamest-coordinator run",
)
TRACEBACK = Variable(
    "FLAMEST_TRACEBACK",
    "Set to 1 to see more of an error: Python's traceback of a file that could not be read or written, and the output "
    "of child processes. May show file names and labels.",
    "messages without tracebacks",
    "all commands and their child processes",
)
CACHE_HOME = Variable(
    "XDG_CACHE_HOME",
    "Folder of caches; TensorRT engines, kernel timings and measured choices go to flamest/ in it. Must be absolute.",
    "~/.cache",
    "flamest-agent, flamest-export",
)
PYTHON_PATH = Variable(
    "PYTHONPATH",
    "Python's own search path for modules; child processes get it with this process's import path added.",
    "the installed packages",
    "all commands that start child processes",
)
GRPC_VERBOSITY = Variable(
    "GRPC_VERBOSITY",
    "How much gRPC's C core writes to stderr: NONE, ERROR, INFO or DEBUG.",
    "NONE, which FLAMeST sets",
    "flamest-agent, flamest-coordinator",
)
HF_HOME = Variable(
    "HF_HOME",
    "Folder where huggingface_hub keeps downloaded weights.",
    "~/.cache/huggingface",
    "huggingface_hub, for flamest-export and flamest-experiment",
)
HF_HUB_OFFLINE = Variable(
    "HF_HUB_OFFLINE",
    "Set to 1 to use downloaded weights only, without network.",
    "weights that are missing are downloaded",
    "flamest-export and flamest-experiment, and huggingface_hub for them",
)
HF_TOKEN = Variable(
    "HF_TOKEN",
    "Token of an account at the Hugging Face hub, for models that only accounts may fetch. The defaults need none.",
    "the token of `hf auth login`, or none",
    "huggingface_hub, for flamest-export and flamest-experiment",
)
HF_ENDPOINT = Variable(
    "HF_ENDPOINT",
    "Address of a mirror of the hub, such as https://hub.example.org.",
    "https://huggingface.co",
    "huggingface_hub, for flamest-export and flamest-experiment",
)
HF_HUB_DISABLE_XET = Variable(
    "HF_HUB_DISABLE_XET",
    "Set to 1 to fetch the hub's files over HTTPS alone, where the network blocks its storage protocol, Xet.",
    "Xet, where hf_xet is installed",
    "huggingface_hub, for flamest-export and flamest-experiment",
)
TORCH_HOME = Variable(
    "TORCH_HOME",
    "Folder where weights of model zoos (Slow, I3D, ResNet-3D) are kept, in hub/checkpoints/.",
    "~/.cache/torch",
    "PyTorch, for flamest-export",
)
HTTPS_PROXY = Variable(
    "HTTPS_PROXY",
    "Proxy for everything that is downloaded, http://USER:PASSWORD@HOST:PORT; also in lower case. NO_PROXY lists hosts "
    "without it.",
    "no proxy",
    "huggingface_hub and flamest-export",
)
CUDA_VISIBLE_DEVICES = Variable(
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA GPUs that may be used, by number or name. FLAMeST sets it for the worker process of each device.",
    "all GPUs",
    "the CUDA driver, for ONNX Runtime CUDA, TensorRT and PyTorch",
)
ORT_TELEMETRY = Variable(
    "ORT_DISABLE_TELEMETRY",
    "Set to 1 by FLAMeST whatever its value was: ONNX Runtime reports nothing.",
    "1",
    "ONNX Runtime",
)
OPENMP_THREADS = Variable(
    "OMP_NUM_THREADS",
    "Set to 1 by FLAMeST, with OPENBLAS_NUM_THREADS, for the processes that decode videos: each uses one core.",
    "all cores, elsewhere",
    "OpenMP and OpenBLAS in decoder processes",
)

VARIABLES = (
    LOG_FORMAT,
    LOG_LEVEL,
    TRACEBACK,
    CACHE_HOME,
    PYTHON_PATH,
    GRPC_VERBOSITY,
    HF_HOME,
    HF_HUB_OFFLINE,
    HF_TOKEN,
    HF_ENDPOINT,
    HF_HUB_DISABLE_XET,
    TORCH_HOME,
    HTTPS_PROXY,
    CUDA_VISIBLE_DEVICES,
    ORT_TELEMETRY,
    OPENMP_THREADS,
)
