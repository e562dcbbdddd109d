"""Augmentation of paired data: images and texts that belong together."""
