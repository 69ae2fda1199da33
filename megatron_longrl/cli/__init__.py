"""The subcommands of `longrl`, and the way from a command line to a checked configuration."""
