"""Stable Diffusion, written to be read: VAE, CLIP text encoder, U-Net, noise schedule.

Knows nothing of anomalies or files or command lines. Start at model.py, unet.py and attention.py.
"""
