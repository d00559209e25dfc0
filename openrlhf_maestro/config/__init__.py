"""The typed configuration: schema, loading and the reference page. Imports pydantic and yaml, nothing heavier."""
