"""``flashmetal bench``: attention of real models, timed beside PyTorch's own ways."""
