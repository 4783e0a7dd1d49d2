"""The models' columns, and what can be derived from them."""
