"""skbcapd: whole frames from the kernel, each with the process that sent it."""

__version__ = "0.1.0"
