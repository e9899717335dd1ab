"""The few names in published diffusers folders that differ from the attribute names of ldm/.

ldm's attribute names are the key segments that diffusers writes today, so that most keys need nothing.
"""

import re

# (pattern, replacement, reason); None as replacement drops the tensor. Applied in order, all of them.
TEXT_ENCODER = [
    (r"^text_model\.", "", "written by transformers before 5.6 and still by most published folders"),
    (r"^embeddings\.position_ids$", None, "0..76; merges cast it to fp16 and corrupt it, never load it"),
]
VAE = [
    # diffusers 0.6 to 0.10 saved the published SD 1.x and 2.x folders with these names.
    (r"(mid_block\.attentions\.0)\.query\.", r"\1.to_q.", "old name of the VAE's attention"),
    (r"(mid_block\.attentions\.0)\.key\.", r"\1.to_k.", "old name of the VAE's attention"),
    (r"(mid_block\.attentions\.0)\.value\.", r"\1.to_v.", "old name of the VAE's attention"),
    (r"(mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0.", "old name of the VAE's attention"),
]
UNET: list = []


def rename(key: str, layout: list) -> str | None:
    """A published key -> the name in ldm, or None for a tensor that is not loaded."""
    for pattern, replacement, _ in layout:
        if re.search(pattern, key):
            if replacement is None:
                return None
            key = re.sub(pattern, replacement, key)
    return key
