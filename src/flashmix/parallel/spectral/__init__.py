"""Spectral filtering across ranks: a sum of few modes, or an exchange of tokens for channels."""
