"""Pictures of what mixers do."""
