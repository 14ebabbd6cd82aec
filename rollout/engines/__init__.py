"""Engines that sample elsewhere: vLLM behind HTTP or in the process, and a JSON client."""
