"""The command line: flags and the command behind each mode."""
