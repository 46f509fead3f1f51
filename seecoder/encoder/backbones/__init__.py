"""Backbones: timm's pyramids, the published Swin among them, and their pretrained weights."""
