"""How fast the project is, and how much memory it takes; ``tools/bench.py`` is its command."""
