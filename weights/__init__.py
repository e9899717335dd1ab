"""Published Stable Diffusion files -> ldm modules."""

from weights.load import fingerprint, load

__all__ = ["fingerprint", "load"]
