"""The HTML page, its tables, and their export."""
