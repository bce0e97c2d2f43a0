"""`make bench`: what a capture costs, beside other tools. Reading order: wire, loads, tools, measure, report."""
