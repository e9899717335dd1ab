"""Photographs -> a run: learn() is what tools/train_embed.py does."""

from anomaly.runs.learn import learn

__all__ = ["learn"]
