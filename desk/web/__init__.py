"""The pages of the desk and its interface for programs: Starlette, Jinja2, plain ES modules."""
