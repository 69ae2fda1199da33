"""Process groups, MR-SP's two stages and the exchanges that they are made of."""
