"""AnomalyDiffusion (AAAI 2024): learn a defect from a few photographs, paint it into normal ones.

The files of this folder are the paper, in the order of the data: dataset, crop, views, embedding,
spatial_encoder, prompt, train, reweight, sampler, painter, mask_model. Round them, each importing
only what stands before it:

    scores/     numbers by which pictures are judged
    runs/       photographs -> a run: the story of tools/train_embed.py is runs.learn
    pairs/      a run -> a data set: the story of tools/sample.py is pairs.paint
    drawn/      the photographs that the project draws, for the demo and for its own checkpoint
"""

__version__ = "0.2.0"
