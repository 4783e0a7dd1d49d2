"""Text of strangers, such as an account's name, on one line of a mail, a terminal or a log."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return the text without line breaks, terminal sequences and what else cannot be seen."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def quoted(value: object) -> str:
    """Return what is one field's value in a log line, whatever is in it."""
    text = one_line(str(value)).replace('"', "'")
    return f'"{text}"' if " " in text else text
