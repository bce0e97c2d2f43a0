"""The table of settings, and the YAML file that sets them."""
