"""The drain loop: ranges of blocks from the kernel, labels for packets that have none, totals, reload."""
