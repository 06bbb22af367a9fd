"""Where flashmetal meets other libraries. Each module is imported by name, by whoever wants it."""
