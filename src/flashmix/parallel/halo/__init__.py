"""Sliding-window attention across ranks: keys and values come from the neighbours' slices."""
