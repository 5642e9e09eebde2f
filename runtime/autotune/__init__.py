"""Measuring which CPU backend computes a bundle fastest on this machine (``--precision auto``)."""
