"""Connects a Django site to Keap (Infusionsoft) accounts by OAuth 2, and keeps them connected."""
