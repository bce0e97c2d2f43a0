"""The file format: options, the comment's grammar, link types, interfaces, the writer (scapy's), the reader."""
