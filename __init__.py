"""FLAMeST: federated action recognition from frozen BLIP and Slow embeddings.

The repository root is this package; README.md says what it does and
ARCHITECTURE.md which folder is which room of the house.
"""

__version__ = "0.1.0"
