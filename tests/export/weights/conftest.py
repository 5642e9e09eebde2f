"""Makes the modules next to it importable: the web server on loopback, and the published captioner's files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name in ("web_server", "published_blip"):
    key = f"flamest_tests_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
