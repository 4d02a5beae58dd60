"""From an address to files on this machine."""
