"""The command `hyena`, one file a verb."""
