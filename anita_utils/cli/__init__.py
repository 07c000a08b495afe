"""The `anita` command: a file a verb."""
