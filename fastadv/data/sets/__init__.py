"""What a data set is: images and labels by index, splits, subsets, named sets."""
