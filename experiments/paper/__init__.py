"""Questions about the paper. README.md has the answers."""
