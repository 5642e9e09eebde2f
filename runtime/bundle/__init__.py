"""The bundle: manifest, signature, opening."""
