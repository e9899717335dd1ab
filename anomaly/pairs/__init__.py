"""A run -> a data set of pairs: paint() is what tools/sample.py does."""

from anomaly.pairs.foreground import anywhere, objects_found, part_masks
from anomaly.pairs.masks import learned_masks, mask_files, training_masks
from anomaly.pairs.paint import paint
from anomaly.pairs.pair_folder import PairFolder

__all__ = ["PairFolder", "anywhere", "learned_masks", "mask_files", "objects_found", "paint",
           "part_masks", "training_masks"]
