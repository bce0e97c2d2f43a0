"""What a running capture needs beside the capture: event loop, statistics, endpoints, log, sd_notify."""
