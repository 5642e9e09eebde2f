"""FLAMeST: federated action recognition from frozen BLIP and Slow embeddings.

The repository root is this package; README.md says what it does and
ARCHITECTURE.md which folder is which room of the house.
"""

import os

# From 1.29 on ONNX Runtime's Linux wheels send what they are used for to their maker unless told not to
# (https://github.com/microsoft/onnxruntime/pull/27379). It is looked at when onnxruntime is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
