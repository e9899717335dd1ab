"""Published Stable Diffusion files -> ldm modules."""

from weights.load import TINY, fingerprint, load

__all__ = ["TINY", "fingerprint", "load"]
