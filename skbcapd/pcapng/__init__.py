"""The file format: blocks, options, grammar of the comment, link types, interfaces, writer (scapy), reader."""
