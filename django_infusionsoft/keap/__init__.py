"""The network: Keap's authorization server and its addresses. Knows no model."""
