"""One file a format: what its reader refuses, and how it is opened without being decoded."""
