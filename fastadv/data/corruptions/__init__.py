"""Corruptions of images: the fifteen kinds of ImageNet-C in five severities each."""
