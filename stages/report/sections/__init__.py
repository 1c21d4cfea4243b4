"""A file a section of the page."""
