"""Clients for Keap's API, which a site uses with a connected account."""
