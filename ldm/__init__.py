"""Stable Diffusion, written to be read: VAE, CLIP text encoder, U-Net, noise schedule.

Knows nothing of anomalies, files or the command line. Start at model.py, then unet.py and
attention.py.
"""
