"""The fifteen common corruptions as functions of a batch of images, one module for each group."""
