"""What several experiments share: initialisation, timing, memory, published numbers, tables."""
