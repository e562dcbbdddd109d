"""Back-Modality: data through another modality and back, X_aug = G(H(F(X))), as a tool and as baselines."""
