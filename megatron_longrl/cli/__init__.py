"""The subcommands of ``longrl``."""
