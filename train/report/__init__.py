"""One web page of a run."""
