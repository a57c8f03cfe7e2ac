"""Statistics on the rows of a run; nothing here is measured, and nothing is put into words."""
