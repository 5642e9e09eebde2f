"""Attacks that compute a silo's embeddings back: from updates, and from reports of evaluations."""
