"""Transforms along tokens, column by column, in passes that each read and write everything once."""
