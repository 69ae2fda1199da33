"""What all tests share: the marker of the full tier, and that SIGINT ends what they start."""

from tests.interrupts import restore_interrupts

pytest_plugins = ["tests.runner.tiers"]
restore_interrupts()
