"""What a user does with a grant: connect, import, test and disconnect."""
