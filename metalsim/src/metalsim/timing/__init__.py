"""A time model of Apple's GPUs, for ranking variants of a kernel: nothing here was measured on a
GPU by metalsim, and docs/time_model.md says how far the model is from what others published."""

from __future__ import annotations

from .chips import Chip, Family, chip, chips
from .model import Prediction, predict
from .work import Work, work_of_counters

__all__ = ["Chip", "Family", "Prediction", "Work", "chip", "chips", "predict", "work_of_counters"]
