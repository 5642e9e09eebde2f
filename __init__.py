"""FLAMeST: federated action recognition from frozen BLIP and Slow embeddings.

The repository root is this package; README.md says what it does and
ARCHITECTURE.md what each package holds.
"""

import os

# From 1.29 on ONNX Runtime's Linux wheels send telemetry to their maker unless this is set
# (https://github.com/microsoft/onnxruntime/pull/27379). It is read when onnxruntime is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
