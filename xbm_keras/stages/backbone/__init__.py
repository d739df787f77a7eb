"""The frozen network: from items to features."""
