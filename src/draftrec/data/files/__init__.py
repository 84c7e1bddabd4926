"""Files and folders, on this machine and at addresses: read, written whole, locked."""
