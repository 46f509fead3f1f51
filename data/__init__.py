"""Code that makes and reads data; runs from a checkout and is not part of the wheel."""
