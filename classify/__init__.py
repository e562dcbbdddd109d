"""Train and compare classifiers with and without synthetic images."""
