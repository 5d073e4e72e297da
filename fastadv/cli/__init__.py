"""The commands: each file parses flags, calls the library, prints. No logic of its own."""
