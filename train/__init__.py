"""Training: `python -m train fit --config configs/….yaml`; runs from a checkout and is not part of the wheel."""
