"""What every room and command may use: errors, files, processes, the terminal."""
