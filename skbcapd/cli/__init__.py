"""The command line: arguments, commands, the doctor's report, Wireshark's extcap."""
