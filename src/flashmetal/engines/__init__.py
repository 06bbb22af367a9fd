"""The engines: each a module with ``refuse(problem)`` and ``forward(problem, inputs, out)``."""
