"""Benchmarks of this repository: ``registry`` lists what is measured, for the suite, the ratios, the claims and the page's table."""
