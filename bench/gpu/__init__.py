"""What a GPU shows that the simulated one cannot: ``python -m bench.gpu`` on a machine that has one; see ``__main__``."""
