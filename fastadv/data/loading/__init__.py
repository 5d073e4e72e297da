"""The order of an epoch and the pixels of a batch."""
