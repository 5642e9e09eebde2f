"""How the small networks of the mini-world were trained."""
