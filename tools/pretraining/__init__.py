"""How the embedded checkpoint is made: pictures, autoencoder, diffusion model, files."""
