"""Photographs -> a run: learn() and add() are what tools/train_embed.py does."""

from anomaly.runs.adding import add
from anomaly.runs.learn import learn

__all__ = ["add", "learn"]
