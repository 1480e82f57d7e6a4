"""Pure functions of an architecture."""
