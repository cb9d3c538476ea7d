"""Text of messages."""


def printable(text: str) -> str:
    """Return a text in one line that leads no terminal: control characters are escaped."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)
