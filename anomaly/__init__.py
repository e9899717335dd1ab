"""AnomalyDiffusion (AAAI 2024): learn a defect from a few photographs, paint it into normal ones.

The files of this folder are the paper, in the order of the data: dataset, crop, embedding,
spatial_encoder, prompt, train, reweight, sampler, mask_model. What turns painted latents into files that
people can use is in output/; nothing here imports it.
"""
