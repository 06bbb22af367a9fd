"""The Metal sources, as text files; they know nothing of Python."""
