"""What a report says: a file for each suite, with its tables, statements and findings."""
