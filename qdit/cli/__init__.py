"""The commands: everything that parses a command line."""
