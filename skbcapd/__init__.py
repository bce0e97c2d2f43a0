"""skbcapd: complete frames from the kernel, each with the process that sent or received it."""

__version__ = "0.1.0"
