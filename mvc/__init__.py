"""mvc: grow a small image-classification data set with in-domain synthetic images."""

__version__ = "0.1.0"
