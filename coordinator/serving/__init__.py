"""The running server: calls, rounds, uploads."""
