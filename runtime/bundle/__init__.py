"""The bundle: its manifest, its signatures, and opening it safely."""
