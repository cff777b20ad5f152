"""The configuration file: one class a section, the file's reader, and its reference pages."""
