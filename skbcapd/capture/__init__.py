"""The drain loop: ranges of blocks from the kernel, the stages of packets without a label, totals, reload."""
