"""Analysis of capture files: sums by process, one file for each process."""
