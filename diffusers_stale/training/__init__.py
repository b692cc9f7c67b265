"""Training of the four parts of a checkpoint: autoencoder, text encoder, 2D text-to-image UNet, 5D UNet."""
