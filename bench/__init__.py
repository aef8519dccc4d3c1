"""How fast it is: `python -m bench` measures the whole local profile, the other modules one part each."""
