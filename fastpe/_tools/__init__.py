"""Tools built on fastpe: the command line, the demo, plots and the benchmark. The library itself never imports them."""
