"""One file a figure, a table or an open question; README.md holds what they measured."""
