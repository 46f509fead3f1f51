"""The published methods, one a file or folder, and what several of them share."""
