"""Opening a data set: `by_name` is the one door, `by_path` reads folders and files."""
