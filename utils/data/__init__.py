"""Read packed data sets: records, images, masks, tokens, and the samples of training."""
