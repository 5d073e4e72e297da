"""Detection and instance segmentation on the project's backbones."""
