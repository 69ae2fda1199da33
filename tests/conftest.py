"""What all tests share: the marker of the full tier."""

pytest_plugins = ["tests.runner.tiers"]
