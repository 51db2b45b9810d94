"""What is built with fastpe and that the library itself never imports: the command line, demo, pictures and benchmark."""
