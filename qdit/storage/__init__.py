"""Files: whole or not at all, checked when read back, locked where several processes write."""
