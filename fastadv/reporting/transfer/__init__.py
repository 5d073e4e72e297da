"""The sections of the report about transfer."""
