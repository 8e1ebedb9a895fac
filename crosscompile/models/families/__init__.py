"""One module a family: from its config.json to a Design. The table of crosscompile.models says which is whose."""
