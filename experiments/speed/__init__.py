"""Questions about speed. README.md has the answers."""
