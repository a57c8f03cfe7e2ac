"""The report as one HTML file that needs no network, and a server of such files."""
