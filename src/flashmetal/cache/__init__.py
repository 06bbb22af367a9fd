"""Caches of keys and values for decoding: formats, pages, appends and their functions."""
