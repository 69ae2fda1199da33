"""What a rollout server must bear; see ``__main__.py``."""
