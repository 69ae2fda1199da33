"""What these tests share with those of whole programs."""

from tests.functional.conftest import arena

__all__ = ["arena"]
