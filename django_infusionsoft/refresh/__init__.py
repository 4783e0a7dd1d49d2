"""The heart: a refresh token is presented once, and the answer is never lost."""
