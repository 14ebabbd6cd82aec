"""The top layer: configs, the command line and runs; it may import everything below."""
