"""Sound: tracks of films and files of their own, log-mel features, units of a few seconds."""
